"""A pack that is being made: it can be killed at any moment and goes on; it never looks whole before it is.

``<split>.bin.partial`` grows record by record; ``<split>.journal.partial`` has a header, which says what is packed how,
and a row for every record, written after the record itself. On the disk they may still arrive in another order, so that
every row is compared with its data before going on.
"""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from geexp.config.errors import DataError
from geexp.data.pack import FORMAT, PackIndex, first_damaged, index_path
from geexp.runs.atomic_write import atomic_write

log = logging.getLogger(__name__)

ROW = np.dtype([("end", "<i8"), ("digest", "<u8"), ("height", "<i4"), ("width", "<i4")])
# A disk, a quota or the limit of a file's size is used up.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Record(NamedTuple):
    """The stored form of an image: ``content`` is empty for one that is left out."""

    content: bytes | memoryview
    digest: int
    height: int
    width: int


class PartialPack:
    """What will be the pack ``<split>.bin``; used in a ``with``.

    Args:
        said: what it is a pack of; a partial one that says otherwise is discarded.

    Raises:
        DataError: on entering, if another process is making this pack.
    """

    def __init__(self, path: Path, said: dict[str, str]) -> None:
        self.path, self.index = path, index_path(path)
        self.data, self.journal = path.with_name(f"{path.name}.partial"), path.with_suffix(".journal.partial")
        self._header = json.dumps({"format": FORMAT} | said, sort_keys=True).encode() + b"\n"
        self.count = self.size = 0  # records and bytes that are there

    def begun(self) -> bool:
        """Whether there is something of this very pack to go on with."""
        return self.data.exists() and self._journalled() is not None

    def __enter__(self) -> "PartialPack":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._journal_file = _open(self.journal)
        try:
            fcntl.flock(self._journal_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._journal_file.close()
            raise DataError(f"{self.path}: another process is packing it already.") from error
        self._undo_half_a_finish()
        rows = self._sound_rows()
        self._data_file = _open(self.data)
        self._cut_after(rows)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._data_file.close()
        self._journal_file.close()

    def keep_until_left_out(self) -> None:
        """Forget the first record that is left out, and what comes after it."""
        rows = self.all_rows()
        left_out = np.flatnonzero(np.diff(rows["end"], prepend=0) == 0)
        if len(left_out):
            self._cut_after(rows[: left_out[0]])

    def append(self, records: Sequence[Record]) -> None:
        """Raises ``OSError``, as ``finish`` does, for instance one of ``FULL``; what is whole stays."""
        rows = np.empty(len(records), dtype=ROW)
        end = self.size
        for row, (content, digest, height, width) in enumerate(records):
            _write(self._data_file, content)
            end += len(content)
            rows[row] = end, digest, height, width
        _write(self._journal_file, rows.tobytes())
        self.count, self.size = self.count + len(rows), end

    def all_rows(self) -> np.ndarray:
        rows = self._journalled()
        assert rows is not None
        return rows

    def finish(self, index: PackIndex) -> None:
        """Make it the pack. In this order an old index never stands beside new data."""
        os.fsync(self._data_file.fileno())
        self.index.unlink(missing_ok=True)
        os.replace(self.data, self.path)
        with atomic_write(self.index) as file:
            np.savez(file, **vars(index))
        self.discard_journal()

    def discard_journal(self) -> None:
        """The last step of finishing; all that may be missing when the index is there."""
        self.journal.unlink(missing_ok=True)

    def _undo_half_a_finish(self) -> None:
        if self.journal.exists() and self.path.exists() and not self.index.exists() and not self.data.exists():
            os.replace(self.path, self.data)

    def _journalled(self) -> np.ndarray | None:
        """The whole rows of the journal; None if it is of another pack or there is none."""
        try:
            content = self.journal.read_bytes()
        except FileNotFoundError:
            return None
        if not content.startswith(self._header):
            return None
        rows = content[len(self._header) :]
        return np.frombuffer(rows[: len(rows) // ROW.itemsize * ROW.itemsize], dtype=ROW)

    def _sound_rows(self) -> np.ndarray:
        nothing = np.empty(0, dtype=ROW)
        rows = self._journalled()
        if rows is None:
            if self.data.exists() and self.data.stat().st_size:
                log.info("%s is of another recipe or other images and is started over", self.data)
            return nothing
        if not self.data.exists():
            return nothing
        ends = np.concatenate([[0], rows["end"]])
        whole = (np.diff(ends) >= 0) & (ends[1:] <= self.data.stat().st_size)
        rows = rows[: len(rows) if whole.all() else whole.argmin()]
        return rows[: first_damaged(self.data, rows["end"], rows["digest"])] if len(rows) else nothing

    def _cut_after(self, rows: np.ndarray) -> None:
        """Both files end with the last of ``rows``, which they begin with."""
        self.count, self.size = len(rows), int(rows["end"][-1]) if len(rows) else 0
        self._data_file.truncate(self.size)
        self._data_file.seek(self.size)
        if not len(rows):
            self._journal_file.truncate(0)
            self._journal_file.seek(0)
            _write(self._journal_file, self._header)
        end = self._journal_file.truncate(len(self._header) + rows.nbytes)
        self._journal_file.seek(end)


def _open(path: Path) -> FileIO:
    """For reading and writing, made if it is not there, unbuffered: what is written survives this process."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")


def _write(file: FileIO, content: bytes | memoryview) -> None:
    """All of it: a disk that fills up takes a part of the last write without an error."""
    rest = memoryview(content)
    while len(rest):
        rest = rest[file.write(rest) :]
