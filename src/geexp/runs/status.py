"""``status.json``: the state of a run, its machine, and the time of its last heartbeat."""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType

from geexp.runs.lock import is_locked
from geexp.runs.run_files import write_json

STATUS = "status.json"
HEARTBEAT = 15.0  # seconds
_LOST_AFTER = 20 * HEARTBEAT


@dataclass(frozen=True)
class Status:
    """The content of ``status.json``.

    ``state`` is ``running``, ``complete``, ``preempted``, ``interrupted``, ``diverged``, ``failed``, or ``lost`` for a
    run that was killed. Times are in seconds since 1970; ``batches`` counts those of the current process.
    """

    state: str
    host: str
    pid: int | None = None
    reason: str | None = None
    started: float | None = None
    heartbeat: float | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    batches: int = 0
    format: int = 1


class StatusFile:
    """Context manager that keeps the file up to date: ``running`` with a heartbeat, then the final state.

    The final state is ``complete``, the ``state`` of the exception, or ``failed``. A full disk does not stop training.
    """

    def __init__(self, folder: Path, *, epochs: int | None) -> None:
        self.path = folder / STATUS
        now = round(time.time(), 3)
        self._content = Status("running", socket.gethostname(), os.getpid(), started=now, epochs=epochs)
        self._one_at_a_time = threading.Lock()
        self._over = threading.Event()

    def at(self, *, epoch: int, step: int, batches: int) -> None:
        """Set the position of training and the number of batches; written with the next heartbeat."""
        self._content = replace(self._content, epoch=epoch, step=step, batches=batches)

    def __enter__(self) -> "StatusFile":
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(HEARTBEAT)  # it must not write after another process has taken over the run
        state, reason = "complete", None
        if error is not None:
            state = getattr(error, "state", "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            reason = (str(error) or type(error).__name__).splitlines()[0]
        self._content = replace(self._content, state=state, reason=reason)
        if not self._write():  # on a full disk, overwrite the old file in place
            with contextlib.suppress(OSError), self.path.open("r+b") as file:
                file.write(json.dumps(asdict(self._content)).encode())
                file.truncate()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            self._write()

    def _write(self) -> bool:
        with self._one_at_a_time, contextlib.suppress(OSError):
            self._content = replace(self._content, heartbeat=round(time.time(), 3))
            write_json(self.path, asdict(self._content))
            return True
        return False


def read_status(folder: Path) -> Status | None:
    """The run's status; None if the file is missing or unreadable.

    A ``running`` run that does not hold its lock is ``lost``; on another machine, which may not share its locks, only
    if its heartbeat is minutes old.
    """
    try:
        content = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        known = {item.name for item in fields(Status)}
        status = Status(**{key: value for key, value in content.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    if status.state == "running" and not is_locked(folder):
        here = status.host == socket.gethostname()
        if here or status.heartbeat is None or abs(time.time() - status.heartbeat) > _LOST_AFTER:
            return replace(status, state="lost", reason="killed, or its machine went down")
    return status
