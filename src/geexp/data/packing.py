"""Making packs: images through a recipe into a file, by many threads, in the order of the source.

Packing can be killed at any moment and goes on, and a pack never looks whole before it is. ``<split>.bin.partial``
grows record by record; ``<split>.rows.partial`` is its checkpoint, written every few seconds and when packing stops: a
header that states what is packed how, and a row for every record that is on the disk.
"""

import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image
from rich.filesize import decimal

from geexp.config.class_folders import require_same_classes
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, FeedConfig, RecipeConfig
from geexp.data.datasets import SPLITS, open_dataset, require_classes
from geexp.data.decode import DAMAGED, open_with_pil, take_conversions
from geexp.data.folder_index import join_names
from geexp.data.imagenet_archives import open_training_archive, open_validation_archive
from geexp.data.images import EncodedImages
from geexp.data.pack import FORMAT, PackIndex, digest, index_path, read_index
from geexp.data.parallel import in_threads, meter, processors
from geexp.runs.atomic_write import atomic_write
from geexp.runs.identity import recipe_slug

log = logging.getLogger(__name__)

_STEP = 8  # images of one task of a thread
_SAVE_EVERY = 10.0  # seconds
_GO_ON = "The same command, without force=true, goes on from there."
_ROW = np.dtype([("end", "<i8"), ("digest", "<u8"), ("height", "<i4"), ("width", "<i4")])
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, or the limit of a file's size


class Record(NamedTuple):
    """The stored form of an image; ``content`` is empty for one that is left out."""

    content: bytes | memoryview
    digest: int
    height: int
    width: int


_LEFT_OUT = Record(b"", digest(b""), 0, 0)


@dataclass(frozen=True)
class Packed:
    """A finished pack; ``seconds`` is None if it was there already."""

    split: str
    path: str
    images: int
    left_out: int
    classes: int
    bytes: int
    seconds: float | None


def open_sources(data: DataConfig, kind: str) -> dict[str, EncodedImages]:
    """The training and the evaluation split of image files, from ``folders`` or ``archives``.

    Raises:
        ConfigError: if they have another number of classes than the configuration states, or are no files.
        DataError: if files are damaged, or the two splits have different classes.
    """
    if kind == "folders":
        opened = {split: open_dataset(data, FeedConfig("folder"), train=split == "train") for split in SPLITS}
        if not all(isinstance(images, EncodedImages) for images in opened.values()):
            raise ConfigError(f"data={data.name}: its images are not read from files; there is nothing to pack.")
        return cast(dict[str, EncodedImages], opened)
    root = Path(str(data.root))
    archives: dict[str, EncodedImages] = {"train": open_training_archive(root), "val": open_validation_archive(root)}
    require_same_classes(*(archive.classes for archive in archives.values()), where=root)
    for split, archive in archives.items():
        require_classes(archive, data, split)
    return archives


def pack_split(
    source: EncodedImages,
    folder: Path,
    split: str,
    recipe: RecipeConfig,
    *,
    workers: int,
    on_error: str = "stop",
    force: bool = False,
) -> Packed:
    """Make ``<folder>/<split>.bin`` and its index, resume making them, or keep a finished pack.

    Recipe original copies the files as they are and refuses only empty ones; ``python -m geexp.check_data`` decodes
    them all. The others decode with Pillow, shrink what is larger than the recipe states (bilinear, antialiased), and
    keep the pixels (raw) or encode them again (jpeg).

    Args:
        on_error: ``stop`` at an image that cannot be read, or ``skip``: leave it out.
        force: replace a finished pack, which stays in use until the new one is whole.

    Raises:
        DataError: for an unreadable image, a full disk, or another pack at this place.
    """
    start, seconds = time.monotonic(), None
    path, n = folder / f"{split}.bin", len(source)
    names = [source.relative_name(index) for index in range(n)]
    about = {"recipe": json.dumps(asdict(recipe), sort_keys=True), "source": _digest_of(source, names)}
    partial = PartialPack(path, about, left_out=on_error == "skip")
    if index_path(path).exists() and not force and partial.checkpoint() is None:
        index = _require_same(path, recipe, about)
        partial.saved.unlink(missing_ok=True)  # the last step of making it may be missing
        log.info("%s is there already (force=true makes it again)", path)
    else:
        try:
            with partial:
                _fill(partial, source, recipe, workers, on_error)
                index = _index(source, names, partial.rows(), recipe, about)
                partial.finish(index)
        except KeyboardInterrupt:
            log.warning("interrupted: %d of %d images of %s are packed. %s", partial.count, n, path.name, _GO_ON)
            raise
        except OSError as error:
            if error.errno not in _FULL:
                raise
            more = decimal(partial.end // max(partial.count, 1) * (n - partial.count))
            need = f"the others need about {more} more" if partial.count else "the others need an unknown amount"
            raise DataError(
                f"{path}: {error.strerror}. {partial.count:,} of {n:,} images are packed, and {need}. "
                f"Free up space. {_GO_ON}"
            ) from error
        seconds = round(time.monotonic() - start, 1)
        if len(index.left_out):
            missing = ", ".join(index.left_out)
            log.warning("%s: %d images could not be read and are left out: %s", path, len(index.left_out), missing)
    images, left_out = len(index.labels), len(index.left_out)
    return Packed(split, str(path), images, left_out, len(index.classes), int(index.ends[-1]), seconds)


def shrunk_size(width: int, height: int, recipe: RecipeConfig) -> tuple[int, int]:
    """Width and height that the recipe stores, never enlarged.

    Rounds as torchvision's ``Resize``, so that evaluation on a short side of 256 finds the pixels it would make itself.
    """
    side = min(width, height) if recipe.short_side is not None else max(width, height)
    target = recipe.short_side if recipe.short_side is not None else recipe.max_side
    assert target is not None
    if side <= target:
        return width, height
    short_width, short_height = (target if s == side else max(1, int(target * s / side)) for s in (width, height))
    return short_width, short_height


def _fill(partial: "PartialPack", source: EncodedImages, recipe: RecipeConfig, workers: int, on_error: str) -> None:
    """Append the records that are not there yet."""
    path, first, n = partial.path, partial.count, len(source)
    if first:
        log.info("%s: %d of %d images are packed already", path, first, n)
    if recipe.name == "original":
        _require_space(path, source, first)

    def pack(indices: range) -> list[Record | Exception]:
        return [_record(source, recipe, index) for index in indices]

    with meter(f"packing {path.name}", n, first) as advance:
        for indices, results in in_threads(pack, range(first, n), step=_STEP, threads=workers):
            before = partial.end
            for index, result in zip(indices, results, strict=True):
                if isinstance(result, Record):
                    partial.append(result)
                    continue
                about = f"cannot read {source.name(index)} (image {index}): {result}"
                if on_error == "stop":
                    raise DataError(f"{about}. Replace the file, or leave it out: on_error=skip. {_GO_ON}") from result
                log.warning("left out: %s", about)
                partial.append(_LEFT_OUT)
            advance(len(indices), partial.end - before)
    for conversion in sorted(take_conversions()):
        log.info("%s", conversion)


def _record(source: EncodedImages, recipe: RecipeConfig, index: int) -> Record | Exception:
    """The stored form of an image; the exception for one that cannot be read."""
    try:
        content = source.content(index)
        if not len(content):
            raise ValueError("the file is empty")
        if recipe.name == "original":
            return Record(content.data, digest(content.data), 0, 0)
        image = open_with_pil(content)
        size = shrunk_size(*image.size, recipe)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)  # antialiased, which is Pillow's way of shrinking
        if recipe.name == "raw":
            stored = image.tobytes()
        else:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=recipe.quality)
            stored = buffer.getvalue()
        return Record(stored, digest(stored), image.height, image.width)
    except DAMAGED as error:
        return error


def _index(
    source: EncodedImages, names: list[str], rows: np.ndarray, recipe: RecipeConfig, about: dict[str, str]
) -> PackIndex:
    there = np.diff(rows["end"], prepend=0) > 0
    if not there.any():
        raise DataError(f"none of the {len(rows)} images can be read; see python -m geexp.check_data")
    joined, name_ends = join_names(compress(names, there))
    sizes = rows[there][: None if recipe.name == "raw" else 0]
    return PackIndex(
        format=np.array(FORMAT),
        recipe=np.array(about["recipe"]),
        source=np.array(about["source"]),
        classes=np.array(source.classes),
        labels=source.labels[there],
        ends=rows["end"][there].astype(np.int64),
        digests=rows["digest"][there].astype(np.uint64),
        names=joined,
        name_ends=name_ends,
        heights=sizes["height"].astype(np.int32),
        widths=sizes["width"].astype(np.int32),
        left_out=np.array(list(compress(names, ~there)), dtype=str),
    )


def _require_same(path: Path, recipe: RecipeConfig, about: dict[str, str]) -> PackIndex:
    """The index of the pack that is there; raises ``DataError`` if it is not the one that would be made."""
    index, _ = read_index(path)
    theirs = json.loads(str(index.recipe))
    if theirs != asdict(recipe):
        other = f"recipe {recipe_slug(RecipeConfig(**theirs))} instead of {recipe_slug(recipe)}"
    elif str(index.source) != about["source"]:
        other = "other images"
    else:
        return index
    raise DataError(
        f"{path} is a pack of {other}. Choose another folder with out=<folder>, or replace it with force=true."
    )


def _digest_of(source: EncodedImages, names: list[str]) -> str:
    """Identifies the images of a pack, wherever they lie."""
    whole = hashlib.blake2b(digest_size=16)
    for part in ("\0".join(source.classes), "\0".join(names)):
        whole.update(os.fsencode(part) + b"\0\0")
    whole.update(source.labels.tobytes())
    return whole.hexdigest()


def _require_space(path: Path, source: EncodedImages, first: int) -> None:
    """Raise ``DataError`` unless the files from ``first`` on fit on the disk."""

    def sizes(indices: range) -> int:
        total = 0
        for index in indices:
            with suppress(OSError):  # found to be unreadable when it is packed
                total += source.size(index)
        return total

    # Many threads, since they wait for the disk or the network.
    parts = in_threads(sizes, range(first, len(source)), step=1024, threads=4 + processors())
    needed, free = sum(size for _, size in parts), shutil.disk_usage(path.parent).free
    if needed > free:
        raise DataError(
            f"{path.parent}: {path.name} needs {decimal(needed)} and {decimal(free)} are free. Free up space, choose "
            "another folder with out=<folder>, or a recipe that shrinks images: recipe=jpeg."
        )


class PartialPack:
    """A pack ``<split>.bin`` that is being made; used in a ``with``, which ends with a checkpoint.

    Args:
        about: what is packed how; a partial pack of anything else is discarded.
        left_out: whether to keep records of images that were left out; otherwise the first one is tried again.

    Raises:
        DataError: on entering, if another process is making this pack.
        OSError: if something cannot be written, for instance one of ``_FULL``.
    """

    def __init__(self, path: Path, about: dict[str, str], *, left_out: bool = False) -> None:
        self.path = path
        self.data, self.saved = path.with_suffix(".bin.partial"), path.with_suffix(".rows.partial")
        self.end = 0  # bytes of all records
        self.count = 0  # records in the last checkpoint
        self._header = json.dumps({"format": FORMAT} | about, sort_keys=True).encode() + b"\n"
        self._left_out = left_out

    def checkpoint(self) -> np.ndarray | None:
        """The rows of the checkpoint; None if there is nothing of this very pack to go on with."""
        if not (self.data.exists() and self.saved.exists()):
            return None
        content = self.saved.read_bytes()
        if not content.startswith(self._header):
            return None
        rows = np.frombuffer(content[len(self._header) :], dtype=_ROW)
        return rows if rows["end"].max(initial=0) <= self.data.stat().st_size else None

    def __enter__(self) -> "PartialPack":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.data.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise DataError(f"{self.path}: another process is packing it already.") from error
        rows = self.checkpoint()
        if rows is None:
            if self.data.stat().st_size:
                log.info("%s is of another recipe or other images and is started over", self.data)
            rows = np.empty(0, dtype=_ROW)
        left_out = np.diff(rows["end"], prepend=0) == 0
        if left_out.any() and not self._left_out:
            rows = rows[: left_out.argmax()]
        self.end = int(rows["end"].max(initial=0))
        self._rows = bytearray(rows.tobytes())
        self._save()  # before new data can follow rows of another pack
        self._file.truncate(self.end)
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self.data.exists():
                self._save()

    def rows(self) -> np.ndarray:
        return np.frombuffer(bytes(self._rows), dtype=_ROW)

    def append(self, record: Record) -> None:
        rest = memoryview(record.content)
        while len(rest):  # a disk that fills up takes a part of the last write without an error
            rest = rest[self._file.write(rest) :]
        self.end += len(record.content)
        self._rows += np.array((self.end, *record[1:]), dtype=_ROW).tobytes()
        if time.monotonic() - self._saved_at > _SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        os.fsync(self._file.fileno())
        with atomic_write(self.saved) as file:
            file.write(self._header + self._rows)
        self.count = len(self._rows) // _ROW.itemsize
        self._saved_at = time.monotonic()

    def finish(self, index: PackIndex) -> None:
        """Make it the pack. The data take their name last, so that a new pack is not whole before."""
        self._save()
        with atomic_write(index_path(self.path)) as file:
            np.savez(file, **vars(index))
        os.replace(self.data, self.path)
        self.saved.unlink()
