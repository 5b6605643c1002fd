"""A pack: a split as ``<split>.bin``, all images in the order of class folders, and its index ``<split>.npz``.

Packs are made by ``python -m geexp.pack``, read at random, and verified by hash.
"""

import hashlib
import io
import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import RecipeConfig
from geexp.data.decode import Decoder
from geexp.data.folder_index import cache_folder, name_at
from geexp.data.images import EncodedImages
from geexp.data.parallel import in_threads, meter, processors
from geexp.data.record import names_record
from geexp.runs.atomic_write import atomic_write
from geexp.runs.data_record import SplitRecord
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
            f"{recipe_slug(recipe)}: these are different data sets. Set recipe={theirs['name']} and data.recipe.* as "
            "they were, or give the folder of another pack with feed.pack=<folder>."
        )
    pack = RawPack(path, index) if recipe.name == "raw" else Pack(path, index)
    _verify(pack, index_digest)
    return pack


class Pack(EncodedImages):
    """Recipes original and jpeg."""

    def __init__(self, path: Path, index: PackIndex) -> None:
        self.path, self.index = path, index
        self.classes: list[str] = index.classes.tolist()
        self.labels = index.labels
        # Read, not mapped: a disk error is then an exception, not a SIGBUS.
        self._file = path.open("rb", buffering=0)

    def __getstate__(self) -> dict[str, Any]:  # for DataLoader workers that are spawned
        return self.__dict__ | {"_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_file": state["path"].open("rb", buffering=0)}

    @property
    def left_out(self) -> list[str]:
        """The images of its classes that could not be read when it was made, ``<class>/<file>``."""
        return [name for name in self.index.left_out.tolist() if name.partition("/")[0] in self.classes]

    def relative_name(self, index: int) -> str:
        return name_at(self.index.names, self.index.name_ends, index)

    def name(self, index: int) -> str:
        return f"{self.path}: {self.relative_name(index)}"

    def content(self, index: int) -> np.ndarray:
        start = int(self.index.ends[index - 1]) if index else 0
        content = np.empty(int(self.index.ends[index]) - start, dtype=np.uint8)
        return content[: os.preadv(self._file.fileno(), [content.data], start)]

    def record(self) -> SplitRecord:
        return names_record(self.classes, self.labels, self.index.names, self.index.name_ends, with_class=True)

    def require_sound(self) -> None:
        """Compare every image with its digest; raises ``DataError`` for the first that differs."""
        sizes = np.diff(self.index.ends, prepend=0)

        def first_damaged(indices: range) -> int | None:
            return next((i for i in indices if digest(self.content(i).data) != self.index.digests[i]), None)

        with meter(f"verifying {self.path.name}", len(self)) as advance:
            for indices, bad in in_threads(first_damaged, range(len(self)), step=_STEP, threads=processors()):
                if bad is not None:
                    name = self.relative_name(bad)
                    raise DataError(f"{self.path} is damaged: {name} (image {bad}) is not what was packed. {_AGAIN}")
                advance(len(indices), int(sizes[indices].sum()))


class RawPack(Pack):
    """Recipe raw: the content of an image is its pixels."""

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels(index))

    def pixels(self, index: int, decode: Decoder) -> Tensor:
        return torch.from_numpy(self._pixels(index))

    def _pixels(self, index: int) -> np.ndarray:
        return self.content(index).reshape(self.index.heights[index], self.index.widths[index], 3)


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


def _verify(pack: Pack, index_digest: str) -> None:
    """``require_sound``, unless this machine has verified these very files before."""
    path, status = pack.path, pack.path.stat()
    facts = f"{path}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ino}\n{index_digest}\n".encode(
        errors="surrogateescape"
    )
    verified = cache_folder() / f"verified-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    with suppress(OSError):
        if verified.read_bytes() == facts:
            return
    start = time.monotonic()
    pack.require_sound()
    log.info("%s: all %d images verified by hash in %.1f s", path, len(pack), time.monotonic() - start)
    try:
        with atomic_write(verified) as file:
            file.write(facts)
    except OSError as error:
        log.info("cannot remember that %s is verified: %s", path, error)
