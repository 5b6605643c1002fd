"""status.json: what a run is doing or how it ended, as somebody else reads it."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from geexp.config.errors import DataError, DivergedError
from geexp.runs import status as module
from geexp.runs.lock import run_lock
from geexp.runs.status import STATUS, StatusFile, read_status
from geexp.training.stopping import Stopped
from tests.support.processes import until


def test_while_it_runs(tmp_path):
    with run_lock(tmp_path), StatusFile(tmp_path, epochs=5) as status:
        first = read_status(tmp_path)
        assert first is not None
        assert first.started <= first.heartbeat <= time.time()
        status.at(epoch=2, step=70, batches=70)
        assert (first.state, first.host, first.pid) == ("running", socket.gethostname(), os.getpid())
        assert (first.reason, first.epoch, first.epochs, first.step, first.batches) == (None, None, 5, None, 0)


def test_the_heart_beats_and_says_where_training_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    with run_lock(tmp_path), StatusFile(tmp_path, epochs=5) as status:
        beats = set()
        status.at(epoch=2, step=70, batches=70)
        deadline = time.monotonic() + 10
        while len(beats) < 4:
            assert time.monotonic() < deadline
            now = read_status(tmp_path)
            assert now is not None  # it is replaced, never half written
            beats.add(now.heartbeat)
        assert (now.state, now.epoch, now.step) == ("running", 2, 70)
    ended = (tmp_path / STATUS).read_text()
    time.sleep(0.05)
    assert (tmp_path / STATUS).read_text() == ended  # it is somebody else's from here on


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "complete", None),
        (DataError("last.ckpt cannot be written\nand more"), "failed", "last.ckpt cannot be written"),
        (DivergedError("the training loss is not finite"), "diverged", "the training loss is not finite"),
        (Stopped(signal.SIGTERM), "preempted", "SIGTERM"),
        (Stopped(signal.SIGUSR1), "preempted", "SIGUSR1"),
        (Stopped(signal.SIGINT), "interrupted", "Ctrl-C"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (ZeroDivisionError("a bug"), "failed", "a bug"),
        (MemoryError(), "failed", "MemoryError"),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, BaseException) else "",
)
def test_how_it_ended(tmp_path, error, state, reason):
    with suppress(*() if error is None else (type(error),)), run_lock(tmp_path), StatusFile(tmp_path, epochs=None):
        if error is not None:
            raise error
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.reason) == (state, reason)
    assert status.heartbeat >= status.started


KILLED = """
import os, signal, sys
from pathlib import Path
from geexp.runs.lock import run_lock
from geexp.runs.status import StatusFile
with run_lock(Path(sys.argv[1])), StatusFile(Path(sys.argv[1]), epochs=5):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_it_is_lost(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / STATUS).read_text())["state"] == "running"
    status = read_status(tmp_path)
    assert status is not None
    assert status.state == "lost"
    assert status.reason == "killed, or its machine went down"


@pytest.mark.parametrize(("age", "state"), [(10, "running"), (-10, "running"), (600, "lost"), (-600, "lost")])
def test_on_another_machine_the_heartbeat_tells(tmp_path, age, state):
    with run_lock(tmp_path):
        (tmp_path / STATUS).write_text(
            json.dumps({"state": "running", "host": "elsewhere", "heartbeat": time.time() - age})
        )
        assert read_status(tmp_path).state == "running"  # held is held, whatever the clocks say
    assert read_status(tmp_path).state == state


def test_clocks_that_jump_lose_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    real = time.time
    with run_lock(tmp_path), StatusFile(tmp_path, epochs=5):
        for days in (-1, 1, -1000):
            monkeypatch.setattr(time, "time", lambda days=days: real() + 86_400 * days)
            assert read_status(tmp_path).state == "running"
            until(lambda: abs(read_status(tmp_path).heartbeat - time.time()) <= 5)  # it beats on
    assert read_status(tmp_path).state == "complete"


def test_a_full_disk_stops_nobody_and_is_told_in_the_place_of_the_old_file(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reason = "no room for last.ckpt"
    with suppress(DataError), StatusFile(tmp_path, epochs=5) as status:
        monkeypatch.setattr(module, "write_json", full)
        status.at(epoch=3, step=9, batches=9)
        raise DataError(reason)
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.reason, status.step) == ("failed", reason, 9)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"state": "running"}'])
def test_what_is_no_status(tmp_path, content):
    assert read_status(tmp_path) is None
    (tmp_path / STATUS).write_text(content)
    assert read_status(tmp_path) is None
