"""``status.json``: what a run is doing or how it ended, on which machine, and when it was last heard of."""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from geexp.runs.lock import is_locked
from geexp.runs.run_files import write_json

STATUS = "status.json"
HEARTBEAT = 15.0  # seconds
_LOST_AFTER = 20 * HEARTBEAT


class Status:
    """Keeps the file up to date while it is entered: ``running`` with a heartbeat, then how it ended.

    ``complete``, or what the exception says of itself (``state``): ``preempted``, ``interrupted``, ``diverged``; else
    ``failed``. That it cannot be written, on a full disk, stops nobody.
    """

    def __init__(self, folder: Path, *, epochs: int | None) -> None:
        self.path = folder / STATUS
        self._content: dict[str, Any] = {
            "format": 1,
            "state": "running",
            "reason": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": round(time.time(), 3),
            "heartbeat": None,
            "epoch": None,
            "epochs": epochs,
            "step": None,
            "batches": 0,
        }
        self._one_at_a_time = threading.Lock()
        self._over = threading.Event()

    def at(self, *, epoch: int, step: int, batches: int) -> None:
        """Where training is, and how many batches this process has seen; written with the next heartbeat."""
        self._content |= {"epoch": epoch, "step": step, "batches": batches}

    def __enter__(self) -> "Status":
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(HEARTBEAT)  # what it writes, it writes while the run is still this process's own
        if error is None:
            self._content["state"] = "complete"
        else:
            usual = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            reason = str(error) or type(error).__name__
            self._content |= {"state": getattr(error, "state", usual), "reason": reason.splitlines()[0]}
        if not self._write():
            self._overwrite()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            self._write()

    def _write(self) -> bool:
        with self._one_at_a_time, contextlib.suppress(OSError):
            self._content["heartbeat"] = round(time.time(), 3)
            write_json(self.path, self._content)
            return True
        return False

    def _overwrite(self) -> None:
        """A full disk has no room for a new file, but has that of the old one."""
        with contextlib.suppress(OSError), self.path.open("r+b") as file:
            file.write(json.dumps(self._content).encode())
            file.truncate()


def read_status(folder: Path) -> dict[str, Any] | None:
    """What the run's status file says, or None without one.

    A run that says it is running but is not comes back as ``lost``: its lock tells, whatever the clocks say, or on
    another machine, which may not share its locks, a heartbeat that is minutes old.
    """
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(status, dict) or not {"state", "host", "heartbeat"} <= status.keys():
        return None
    if status["state"] == "running" and not is_locked(folder):
        here = status["host"] == socket.gethostname()
        if here or abs(time.time() - status["heartbeat"]) > _LOST_AFTER:
            status |= {"state": "lost", "reason": "killed, or its machine went down"}
    return status
