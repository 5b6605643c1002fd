"""The images of class folders: read once into a compact index that is cached until a folder changes. No torch."""

import hashlib
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from geexp.config.class_folders import SUFFIXES, class_folders, list_folder, walk_folders
from geexp.config.errors import DataError
from geexp.data.parallel import with_bar
from geexp.runs.atomic_write import atomic_write

log = logging.getLogger(__name__)

_FORMAT = 2
# A folder that changed this shortly before it was read may change again without a newer time stamp.
_UNSETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class FolderIndex:
    """The files of a split, as arrays that worker processes share: 1.28 million names take 30 MB, not 200 each.

    Args:
        names, ends: the paths within the class folders, as ``join_names`` makes them.
        folders: the paths of all folders that were read, joined by zero bytes.
        times: when each of these was last changed.
    """

    classes: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    folders: np.ndarray
    times: np.ndarray


def read_folder(folder: Path) -> FolderIndex:
    """The index of a folder of class folders, from the cache if no folder has changed since.

    Raises:
        DataError: for a folder that cannot be read or has no class folders, and a class folder without a single image.
    """
    cache = cache_folder() / f"{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]}.npz"
    cached = _cached(cache)
    if cached is not None and _unchanged(cached):
        return cached
    start = time.time_ns()
    index = _scan(folder)
    images, classes, seconds = len(index.labels), len(index.classes), (time.time_ns() - start) / 1e9
    log.info("%s: %d images in %d class folders (read in %.1f s)", folder, images, classes, seconds)
    if index.times.max() > start - _UNSETTLED_NS:
        return index
    try:
        with atomic_write(cache) as file:
            np.savez(file, format=np.array(_FORMAT), **asdict(index))
    except OSError as error:
        log.info("the list of files is not cached: %s", error)
    return index


def _scan(folder: Path) -> FolderIndex:
    split = class_folders(folder)
    folders, times = [os.fsencode(folder)], [folder.stat().st_mtime_ns]
    names: list[str] = []
    labels: list[np.ndarray] = []
    for label, (name, real) in enumerate(with_bar(split.folders.items(), f"reading {folder}", len(split.folders))):
        before = len(names)
        top = list_folder(folder / name, real)
        for found in sorted(walk_folders(top), key=lambda found: found.path):
            folders.append(os.fsencode(found.path))
            times.append(os.stat(found.path).st_mtime_ns)
            prefix = f"{found.path[len(top.path) + 1 :]}/" if found is not top else ""
            names += [prefix + file for file in found.files]
        if len(names) == before:
            raise DataError(f"The class folder {top.path} has no image ({', '.join(SUFFIXES)}). Add some or remove it.")
        labels.append(np.full(len(names) - before, label, dtype=np.int64))
    joined, ends = join_names(names)
    return FolderIndex(
        classes=np.array(list(split.folders)),
        labels=np.concatenate(labels),
        names=joined,
        ends=ends,
        folders=np.frombuffer(b"\0".join(folders), dtype=np.uint8),
        times=np.array(times, dtype=np.int64),
    )


def _unchanged(index: FolderIndex) -> bool:
    """Adding, removing or renaming a file changes its folder's time stamp."""
    try:
        now = [os.stat(folder).st_mtime_ns for folder in index.folders.tobytes().split(b"\0")]
    except OSError:
        return False
    return now == index.times.tolist()


def _cached(cache: Path) -> FolderIndex | None:
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            if arrays["format"] != _FORMAT:
                return None
            return FolderIndex(**{name: arrays[name] for name in FolderIndex.__dataclass_fields__})
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy, zipfile and zlib each raise their own for a damaged file
        log.info("%s cannot be used (%s) and is written again", cache, error)
        return None


def cache_folder() -> Path:
    """Files that can be made again: in ``GEEXP_CACHE``, or in ``geexp`` of the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.path.expanduser(os.environ.get("GEEXP_CACHE") or f"{home}/geexp"))


def join_names(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """A million names as two arrays: their bytes end to end, ``uint8 [bytes]``, and where each ends, ``int64 [n]``."""
    encoded = [os.fsencode(name) for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends


def name_at(names: np.ndarray, ends: np.ndarray, index: int) -> str:
    start = ends[index - 1] if index else 0
    return os.fsdecode(names[start : ends[index]].tobytes())
