"""One process at a time trains a run, whatever becomes of that process."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geexp.config.errors import DataError
from geexp.runs.lock import LOCK, is_locked, run_lock
from tests.support.processes import until

# Takes the lock, says so, and is then idle; a forked child of it, as a worker of a feed is one, does nothing else.
HOLDER = """
import os, sys, time
from pathlib import Path
from geexp.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(100)
"""


@contextmanager
def holder(folder: Path) -> Iterator[tuple[int, int]]:
    """The pids of a process that holds the lock and of its child."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process.pid, child
    finally:
        process.kill()
        process.wait()
        os.kill(child, signal.SIGKILL)


def test_the_second_is_refused_and_told_who_is_first(tmp_path):
    with holder(tmp_path) as (pid, _):
        assert is_locked(tmp_path)
        for _ in range(2):  # asking takes nothing away
            with pytest.raises(DataError) as refused, run_lock(tmp_path):
                pass
            message = str(refused.value)
            assert message.startswith(f"{tmp_path}: process {pid} on {socket.gethostname()} is training this run.")
            assert "Wait until it ends" in message
        assert (tmp_path / LOCK).read_text() == f"process {pid} on {socket.gethostname()}"


def test_a_process_that_is_killed_holds_it_no_longer_though_its_workers_live(tmp_path):
    with holder(tmp_path) as (pid, child):
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_locked(tmp_path))
        os.kill(child, 0)  # it is there
        with run_lock(tmp_path):
            assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_looking_at_ones_own_lock_does_not_let_go_of_it(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with run_lock(tmp_path / "run"):
        for path in (tmp_path / "run", tmp_path / "link"):
            assert is_locked(path)
            with pytest.raises(DataError, match="this process is already training this run"), run_lock(path):
                pass
        probe = f"from geexp.runs.lock import *; print(is_locked(Path({str(tmp_path / 'run')!r})))"
        seen_by_another = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
        assert seen_by_another.stdout == "True\n"
    assert not is_locked(tmp_path / "run")


def test_it_is_free_before_and_after_and_can_be_taken_again(tmp_path):
    folder = tmp_path / "not/there/yet"
    assert not is_locked(folder)
    for _ in range(2):
        with pytest.raises(KeyError), run_lock(folder):  # however it ends
            raise KeyError
        assert not is_locked(folder)


def test_a_file_system_without_locks_warns_and_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with run_lock(tmp_path):
        pass
    assert "no file locks" in caplog.text
    assert "start the run only once" in caplog.text
