"""``data.json``: what a run reads, by which another data set of the same name, or a changed one, is noticed."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from geexp.config.class_folders import several
from geexp.config.errors import ConfigError
from geexp.runs.run_files import write_json

log = logging.getLogger(__name__)

DATA = "data.json"
FORMAT = 1


@dataclass(frozen=True)
class SplitRecord:
    """The number of images of a split, and a digest of their names, or of their labels if they have no names."""

    images: int
    digest: str


@dataclass(frozen=True)
class DataRecord:
    """The data of a run.

    ``source`` is the key and the folder that they are read from, without links; None for data without a folder.
    """

    source: str | None
    classes: list[str]
    train: SplitRecord
    val: SplitRecord

    @classmethod
    def of(cls, source: str | None, classes: Sequence[str], train: SplitRecord, val: SplitRecord) -> "DataRecord":
        """A record as JSON can hold it: bytes of names that are no text are escaped."""
        return cls(None if source is None else _text(source), list(map(_text, classes)), train, val)

    def write(self, folder: Path) -> None:
        write_json(folder / DATA, {"format": FORMAT, **asdict(self)})

    def require_same(self, folder: Path) -> None:
        """Raise ConfigError, naming the differences, if the run in the folder was recorded with other data."""
        recorded = read_data_record(folder)
        if recorded is None:
            return
        parts = _differences(self, recorded)
        if not parts:
            if self.source != recorded.source:
                log.info("%s: the same names as in %s, with which the run began", self.source, recorded.source)
            return
        if self.source is not None:
            then = "" if self.source == recorded.source else f" (in the folder: {recorded.source})"
            parts.append(f"{self.source}{then}")
        raise ConfigError(
            f"{folder} holds a run on other data: {'; '.join(parts)}. Give this data set a name of its own with "
            "data.name=<name>, choose another folder with outputs=<folder>, or start over in this one with force=true."
        )


def read_data_record(folder: Path) -> DataRecord | None:
    """The record of the run in a folder; None for a run of an earlier version, which has none."""
    try:
        content = json.loads((folder / DATA).read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            return None
        return DataRecord(**content | {split: SplitRecord(**content[split]) for split in ("train", "val")})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def digest_of(parts: Iterable[bytes]) -> str:
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()


def _text(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _differences(ours: DataRecord, theirs: DataRecord) -> list[str]:
    parts = []
    if ours.classes != theirs.classes:
        ours_only, theirs_only = set(ours.classes) - set(theirs.classes), set(theirs.classes) - set(ours.classes)
        named = [several(sorted(only)) or "no others" for only in (ours_only, theirs_only)]
        parts.append(
            f"classes {named[0]} (in the folder: {named[1]})"
            if ours_only or theirs_only
            else "the same classes in another order"
        )
    for split in ("train", "val"):
        one, other = getattr(ours, split), getattr(theirs, split)
        if one.images != other.images:
            parts.append(f"{one.images:,} images in {split} (in the folder: {other.images:,})")
        elif one.digest != other.digest and ours.classes == theirs.classes:
            parts.append(
                f"as many images in {split}, with other names or labels (digests {one.digest}, {other.digest})"
            )
    return parts
