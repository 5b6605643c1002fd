"""A file that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_MARK = ".writing-"


@contextmanager
def atomic_write(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Write to a file beside ``path``, flush it to the disk, then rename it to ``path``.

    Readers see the old file or the new one; after an exception only the old one is there. With ``previous`` the old
    file gets that name once the new one is whole, so that at every moment one of the two exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_MARK}{path.name}-{os.getpid()}")  # mkstemp would make it private to the user
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
        os.fsync(folder)  # the new name, too, must outlive a loss of power
    finally:
        os.close(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left behind; nobody else may be writing here."""
    for left in folder.glob(f"{_MARK}*"):
        left.unlink(missing_ok=True)
