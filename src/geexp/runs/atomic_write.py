"""Atomic writes: a file exists completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_MARK = ".writing-"


@contextmanager
def atomic_write(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Write to a file beside ``path``, flush it to the disk, then rename it to ``path``.

    Readers see either the old file or the new one; after an exception the old one remains. With ``previous`` the old
    file is renamed to that name once the new one is complete, so that one of the two exists at any moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_MARK}{path.name}-{os.getpid()}")  # mkstemp would make it readable for this user only
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name must survive a power loss, too
    finally:
        os.close(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of killed processes; no other process may be writing to the folder."""
    for left in folder.glob(f"{_MARK}*"):
        left.unlink(missing_ok=True)
