"""The lock of a run, which only one process at a time may train."""

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

_held: set[Path] = set()  # by this process; probing a POSIX lock would release it


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the run in ``folder``; the system releases it when the process ends for any reason.

    Raises:
        DataError: if another process holds it.
    """
    path = (folder / LOCK).resolve()
    if path in _held:
        raise DataError(f"{folder}: this process is already training this run.")
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
                f"{folder}: {holder} is training this run. Wait until it ends, or stop it and resume the run."
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
    """Whether a process is training the run, on this machine or on one that shares its locks."""
    path = (folder / LOCK).resolve()
    if path in _held:
        return True
    try:
        with path.open("r+b") as file:
            return not _taken(file)
    except OSError:
        return False


def _taken(file: BinaryIO) -> bool:
    # A POSIX lock belongs to the process, so workers that outlive it do not hold it.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        log.warning("%s: no file locks on this file system (%s); start the run only once.", file.name, error.strerror)
    return True
