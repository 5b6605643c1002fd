"""``data.json``: what a run reads, by which another data set of the same name, or a changed one, is noticed."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from geexp.config.class_folders import several
from geexp.config.errors import ConfigError, DataError
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

    def differences(self, other: "DataRecord") -> list[str]:
        """What differs from the other record, in words; empty for the same data, wherever they are."""
        parts = _other_classes(self, other)
        for split in ("train", "val"):
            ours, theirs = getattr(self, split), getattr(other, split)
            if ours.images != theirs.images:
                parts.append(f"{ours.images:,} images in {split} instead of {theirs.images:,}")
            elif ours.digest != theirs.digest and not parts:
                parts.append(f"other names or labels of the {ours.images:,} images in {split}")
        return parts

    def require_same(self, folder: Path) -> None:
        """Raise ConfigError, naming the differences, if the run in the folder was recorded with other data."""
        recorded = read_data_record(folder)
        if recorded is None:
            return
        parts = self.differences(recorded)
        if not parts:
            if self.source != recorded.source:
                about = "%s has the same names as %s, with which the run began; contents are not compared"
                log.info(about, self.source, recorded.source)
            return
        if self.source is not None:
            then = "" if self.source == recorded.source else f" instead of {recorded.source}"
            parts.append(f"{self.source}{then}")
        raise ConfigError(
            f"{folder} holds a run on other data: {'; '.join(parts)}. Give this data set a name of its own with "
            "data.name=<name>, choose another folder with outputs=<folder>, or start over in this one with force=true."
        )

    def require_same_classes(self, folder: Path) -> None:
        """Raise DataError unless labels mean what they meant to the run in the folder, as far as it is recorded."""
        recorded = read_data_record(folder)
        parts = [] if recorded is None else _other_classes(self, recorded)
        if parts:
            raise DataError(
                f"{self.source or 'the data'}: {parts[0]}, so the labels would not mean the same as in {folder}. Name "
                "the class folders as those that the run was trained on."
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


def _other_classes(ours: DataRecord, theirs: DataRecord) -> list[str]:
    if ours.classes == theirs.classes:
        return []
    new, gone = set(ours.classes) - set(theirs.classes), set(theirs.classes) - set(ours.classes)
    if not new and not gone:
        return ["the same classes in another order"]
    here, there = (several(sorted(only)) or "none" for only in (new, gone))
    return [f"classes {here} instead of {there}"]
