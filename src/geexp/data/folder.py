"""Class folders of image files: read once into a compact index that is remembered until a folder changes."""

import hashlib
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from geexp.data.images import Decoding
from geexp.data.names import join_names, name_at
from geexp.runs.atomic_write import atomic_write

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_FORMAT = 1
# A folder changed this shortly before it was read may change again without a newer time stamp.
_UNSETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class FolderIndex:
    """The files of a split, as arrays that worker processes share: 1.28 million names take 30 MB, not 200 each.

    ``names`` holds the paths within the class folders end to end, ``ends`` where each one ends. ``folders`` are the
    paths of all folders that were read, joined by a zero byte, ``times`` when each was changed last.
    """

    classes: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    folders: np.ndarray
    times: np.ndarray
    read_at: np.ndarray


class FolderImages(Decoding):
    """``<folder>/<class>/**/<file>``; classes and files in the order of their names, as torchvision's ``ImageFolder``.

    Args:
        index: what there is in the folder; None: look.

    Raises:
        ValueError: for a class folder without a single image.
    """

    def __init__(self, folder: Path, index: FolderIndex | None = None) -> None:
        self.folder = folder.absolute()
        self.index = read_folder(self.folder) if index is None else index
        self.classes: list[str] = self.index.classes.tolist()
        self.labels = self.index.labels

    def __len__(self) -> int:
        return len(self.labels)

    def relative_name(self, index: int) -> str:
        """``<class>/<file>``."""
        return f"{self.classes[self.labels[index]]}/{name_at(self.index.names, self.index.ends, index)}"

    def name(self, index: int) -> str:
        return str(self.folder / self.relative_name(index))

    def size(self, index: int) -> int:
        """Bytes of the file."""
        return os.stat(f"{self.folder}/{self.relative_name(index)}").st_size

    def content(self, index: int) -> np.ndarray:
        return np.fromfile(f"{self.folder}/{self.relative_name(index)}", dtype=np.uint8)

    def first_classes(self, n: int) -> "FolderImages":
        kept = slice(int(np.searchsorted(self.labels, n)))  # the images stand in the order of their classes
        index = self.index
        fewer = replace(index, classes=index.classes[:n], labels=index.labels[kept], ends=index.ends[kept])
        return FolderImages(self.folder, fewer)


def class_folders(folder: Path) -> list[str]:
    """The names of the classes, in order; hidden folders are none."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def read_folder(folder: Path) -> FolderIndex:
    """The index of a folder of class folders, from the cache if no folder has changed since."""
    cache = cache_folder() / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.npz"
    remembered = _recall(cache)
    if remembered is not None and _unchanged(remembered):
        return remembered
    start = time.monotonic()
    index = _scan(folder)
    log.info(
        "%s: %d images in %d class folders (read in %.1f s)",
        folder,
        len(index.labels),
        len(index.classes),
        time.monotonic() - start,
    )
    try:
        with atomic_write(cache) as file:
            np.savez(file, format=np.array(_FORMAT), **asdict(index))
    except OSError as error:
        log.info("the list of files is not remembered: %s", error)
    return index


def _scan(folder: Path) -> FolderIndex:
    read_at = time.time_ns()
    folders, times = [os.fsencode(folder)], [folder.stat().st_mtime_ns]
    classes = class_folders(folder)
    names: list[str] = []
    labels: list[np.ndarray] = []
    console = Console(stderr=True)
    for label, name in enumerate(
        track(classes, escape(f"reading {folder}"), console=console, transient=True, disable=not sys.stderr.isatty())
    ):
        before = len(names)
        for path, _, files in sorted(os.walk(folder / name, followlinks=True)):
            folders.append(os.fsencode(path))
            times.append(os.stat(path).st_mtime_ns)
            within = os.path.relpath(path, folder / name)
            prefix = "" if within == "." else f"{within}/"
            names += [prefix + file for file in sorted(files) if file.lower().endswith(SUFFIXES)]
        if len(names) == before:
            raise ValueError(f"The class folder {folder / name} has no image ({', '.join(SUFFIXES)}).")
        labels.append(np.full(len(names) - before, label, dtype=np.int64))
    if not classes:
        raise ValueError(f"{folder} has no class folders.")
    joined, ends = join_names(names)
    return FolderIndex(
        classes=np.array(classes),
        labels=np.concatenate(labels),
        names=joined,
        ends=ends,
        folders=np.frombuffer(b"\0".join(folders), dtype=np.uint8),
        times=np.array(times, dtype=np.int64),
        read_at=np.array(read_at, dtype=np.int64),
    )


def _unchanged(index: FolderIndex) -> bool:
    """Adding, removing or renaming a file changes its folder's time stamp."""
    if index.times.max() > index.read_at - _UNSETTLED_NS:
        return False
    try:
        now = [os.stat(folder).st_mtime_ns for folder in index.folders.tobytes().split(b"\0")]
    except OSError:
        return False
    return now == index.times.tolist()


def _recall(cache: Path) -> FolderIndex | None:
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            if arrays["format"] != _FORMAT:
                return None
            return FolderIndex(**{name: arrays[name] for name in FolderIndex.__dataclass_fields__})
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception:  # zipfile and zlib have their own ways of saying that a file is damaged
        log.info("%s is damaged and is written again", cache)
        return None


def cache_folder() -> Path:
    """Where things are remembered that can be found out again: ``GEEXP_CACHE``, or ``geexp`` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.path.expanduser(os.environ.get("GEEXP_CACHE") or f"{home}/geexp"))
