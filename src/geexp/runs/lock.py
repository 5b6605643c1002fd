"""One process at a time trains a run."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from geexp.config.errors import DataError

LOCK = "run.lock"
log = logging.getLogger(__name__)

_held: set[Path] = set()  # by this process, which would release a lock by probing it


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the run in ``folder``; the system releases it when the process ends, however it ends.

    Raises:
        DataError: if another process holds it.
    """
    path = (folder / LOCK).resolve()
    if path in _held:
        raise DataError(f"{folder}: this process is training this run already.")
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        for _ in range(10):  # a reader probing the lock holds it briefly
            if _taken(file):
                break
            time.sleep(0.05)
        else:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise DataError(
                f"{folder}: {holder} is training this run. Wait for it, or stop it first; it can be gone on with."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)


def is_locked(folder: Path) -> bool:
    """Whether a process trains the run: on this machine, or on one that shares its locks."""
    path = (folder / LOCK).resolve()
    if path in _held:
        return True
    try:
        with path.open("r+b") as file:
            return not _taken(file)
    except OSError:
        return False


def _taken(file: BinaryIO) -> bool:
    # A POSIX lock belongs to the process: workers that outlive it do not hold it.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        log.warning("%s: this file system has no locks (%s); start the run once only.", file.name, error.strerror)
    return True
