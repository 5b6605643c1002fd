"""A pack: a split as ``<split>.bin``, all images in the order of class folders, and its index ``<split>.npz``.

Packs are made by ``python -m geexp.pack``, read at random, and verified by hash.
"""

import hashlib
import io
import json
import logging
import os
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import RecipeConfig
from geexp.data.decode import Decoder
from geexp.data.folder import cache_folder, name_at
from geexp.data.images import EncodedImages, Images
from geexp.data.parallel import in_threads, meter, processors
from geexp.runs.atomic_write import atomic_write
from geexp.runs.identity import recipe_slug

log = logging.getLogger(__name__)

FORMAT = 1
_AGAIN = "Make it again: python -m geexp.pack with the same data and recipe, and force=true."
_STEP = 64  # records of one task of a thread


@dataclass(frozen=True)
class PackIndex:
    """Arrays that worker processes share; of n images.

    Args:
        recipe: JSON of the ``RecipeConfig``.
        source: digest of the names and labels of all images that it was made from.
        labels: ``int64 [n]``, into ``classes``.
        ends: ``int64 [n]``, where each image's content ends in the ``.bin``; it starts where the one before ends.
        digests: ``uint64 [n]``, see ``digest``.
        names, name_ends: ``<class>/<file>``, as ``join_names`` makes them.
        heights, widths: ``int32 [n]`` of recipe raw, else ``[0]``.
        left_out: the names of images that could not be read when it was made.
    """

    format: np.ndarray
    recipe: np.ndarray
    source: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    ends: np.ndarray
    digests: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    left_out: np.ndarray


def open_pack(folder: Path, split: str, recipe: RecipeConfig) -> "Pack":
    """A pack of this recipe, verified on this machine now or earlier.

    Raises:
        ConfigError: if it was made by another recipe.
        DataError: if a file is missing, damaged, or of another format.
    """
    path = folder / f"{split}.bin"
    index, index_digest = read_index(path)
    theirs = json.loads(str(index.recipe))
    if theirs != asdict(recipe):
        raise ConfigError(
            f"{path} was packed with recipe {recipe_slug(RecipeConfig(**theirs))}, and the configuration says "
            f"{recipe_slug(recipe)}: these are different data sets. Say recipe={theirs['name']} and data.recipe.* as "
            "they were, or give the folder of another pack with feed.pack=<folder>."
        )
    _verify(path, index, index_digest)
    return RawPack(path, index) if recipe.name == "raw" else EncodedPack(path, index)


class Pack(Images):
    def __init__(self, path: Path, index: PackIndex) -> None:
        self.path, self.index = path, index
        self.classes: list[str] = index.classes.tolist()
        self.labels = index.labels
        self.left_out: list[str] = index.left_out.tolist()

    def __reduce__(self) -> tuple:  # for DataLoader workers that are spawned
        return type(self), (self.path, self.index)

    def relative_name(self, index: int) -> str:
        """``<class>/<file>``."""
        return name_at(self.index.names, self.index.name_ends, index)

    def name(self, index: int) -> str:
        return f"{self.path}: {self.relative_name(index)}"

    def first_classes(self, n: int) -> Self:
        kept = slice(int(np.searchsorted(self.labels, n)))  # the images stand in the order of their classes
        of_images = ("labels", "ends", "digests", "name_ends", "heights", "widths")
        left_out = [name for name in self.left_out if name.partition("/")[0] in self.classes[:n]]
        fewer = replace(
            self.index,
            classes=self.index.classes[:n],
            left_out=np.array(left_out, dtype=np.str_),
            **{name: getattr(self.index, name)[kept] for name in of_images},
        )
        return type(self)(self.path, fewer)

    def _place(self, index: int) -> tuple[int, int]:
        return int(self.index.ends[index - 1]) if index else 0, int(self.index.ends[index])


class EncodedPack(Pack, EncodedImages):
    """Recipes original and jpeg."""

    def __init__(self, path: Path, index: PackIndex) -> None:
        super().__init__(path, index)
        # Read, not mapped: an error of the disk is then an exception, not a SIGBUS.
        self._file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def content(self, index: int) -> np.ndarray:
        return read_between(self._file, *self._place(index))


class RawPack(Pack):
    """Recipe raw: pixels are views of the mapped file."""

    def __init__(self, path: Path, index: PackIndex) -> None:
        super().__init__(path, index)
        # mode="c" would spare the warning, but Linux refuses writable maps that are larger than the memory.
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        with warnings.catch_warnings():  # torch warns, once in a process, that the array is read-only
            warnings.simplefilter("ignore")
            torch.from_numpy(self._bytes)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels(index))

    def pixels(self, index: int, decode: Decoder) -> Tensor:
        return torch.from_numpy(self._pixels(index))

    def _pixels(self, index: int) -> np.ndarray:
        start, end = self._place(index)
        return self._bytes[start:end].reshape(self.index.heights[index], self.index.widths[index], 3)


def index_path(path: Path) -> Path:
    return path.with_suffix(".npz")


def read_index(path: Path) -> tuple[PackIndex, str]:
    """The index of the pack ``<split>.bin``, and a digest of it.

    Raises:
        DataError: if one of the two files is missing, the index is damaged, or the ``.bin`` has another size.
    """
    file = index_path(path)
    try:
        content, size = file.read_bytes(), path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is not there: no pack, or one that is not finished. {_AGAIN}") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = dict(stored)
        number = int(arrays["format"])
        index = PackIndex(**arrays) if number == FORMAT else None
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise DataError(f"{file} is damaged: {error}. {_AGAIN}") from error
    if index is None:
        raise DataError(f"{file} has format {number}, and this version of geexp reads format {FORMAT}. {_AGAIN}")
    if size != index.ends[-1]:
        raise DataError(f"{path} has {size:,} bytes instead of the {index.ends[-1]:,} of its index. {_AGAIN}")
    return index, hashlib.blake2b(content, digest_size=16).hexdigest()


def digest(content: bytes | memoryview) -> int:
    """Eight bytes of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def read_between(file: int, start: int, end: int) -> np.ndarray:
    """``uint8 [end - start]`` of an open file; less where it ends before."""
    content = np.empty(end - start, dtype=np.uint8)
    return content[: os.preadv(file, [content.data], start)]


def first_damaged(path: Path, ends: np.ndarray, digests: np.ndarray) -> int:
    """The first record of a file that does not match its digest; ``len(ends)`` if all are sound."""
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])

    def sound(record: int) -> bool:
        return digest(read_between(file.fileno(), starts[record], ends[record]).data) == digests[record]

    def verify(records: range) -> int | None:
        return next((record for record in records if not sound(record)), None)

    with path.open("rb", buffering=0) as file, meter(f"verifying {path.name}", len(ends)) as advance:
        for records, bad in in_threads(verify, range(len(ends)), step=_STEP, threads=processors()):
            if bad is not None:
                return bad
            advance(len(records), int(ends[records[-1]] - starts[records[0]]))
    return len(ends)


def require_sound(path: Path, index: PackIndex) -> None:
    """Compare every record of the index with its digest; raises ``DataError`` for the first that differs."""
    bad = first_damaged(path, index.ends, index.digests)
    if bad < len(index.ends):
        name = name_at(index.names, index.name_ends, bad)
        raise DataError(f"{path} is damaged: {name} (image {bad}) is not what was packed. {_AGAIN}")


def _verify(path: Path, index: PackIndex, index_digest: str) -> None:
    """``require_sound``, unless this machine has verified these very files before."""
    status = path.stat()
    facts = f"{path}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ino}\n{index_digest}\n".encode()
    verified = cache_folder() / f"verified-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    with suppress(OSError):
        if verified.read_bytes() == facts:
            return
    start = time.monotonic()
    require_sound(path, index)
    log.info("%s: all %d images verified by hash in %.1f s", path, len(index.ends), time.monotonic() - start)
    try:
        with atomic_write(verified) as file:
            file.write(facts)
    except OSError as error:
        log.info("that %s is verified is not remembered: %s", path, error)
