"""Making packs: images through a recipe into a file, by many threads, in the order of the source."""

import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from rich.filesize import decimal

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, RecipeConfig
from geexp.data.decode import DAMAGED, open_with_pil
from geexp.data.folder import FolderImages
from geexp.data.imagenet_archives import open_training_archive, open_validation_archive
from geexp.data.images import EncodedImages
from geexp.data.meter import meter
from geexp.data.names import join_names
from geexp.data.pack import FORMAT, PackIndex, digest, index_path, read_index
from geexp.data.partial_pack import FULL, PartialPack, Record
from geexp.runs.identity import recipe_slug

log = logging.getLogger(__name__)

# So many images are one task of a thread, and so many tasks per thread are made ahead of the one that is written.
_IMAGES, _AHEAD = 8, 2
_LEFT_OUT = Record(b"", digest(b""), 0, 0)
_GO_ON = "The same command, without force=true, goes on from there."


class Source(EncodedImages, Protocol):
    """What can be packed."""

    def relative_name(self, index: int) -> str:
        """``<class>/<file>``."""

    def size(self, index: int) -> int:
        """Bytes of the content."""


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


def open_sources(data: DataConfig, kind: str) -> dict[str, Source]:
    """The training and the evaluation split of ImageNet-like files, from ``folders`` or ``archives``.

    Raises:
        ConfigError: if they have another number of classes than the configuration says.
        DataError: if files are damaged, or the two splits have different classes.
    """
    root = Path(str(data.root)).expanduser()
    try:
        if kind == "folders":
            sources: dict[str, Source] = {split: FolderImages(root / split) for split in ("train", "val")}
        else:
            sources = {"train": open_training_archive(root), "val": open_validation_archive(root)}
    except (ConfigError, DataError):
        raise
    except ValueError as error:
        raise DataError(f"data={data.name}: the files in {root.absolute()} cannot be used. {error}") from error
    only = sorted(set(sources["train"].classes) ^ set(sources["val"].classes))
    if only:  # labels are given by the order of the classes: a difference would shift them without a word
        raise DataError(f"{root.absolute()}: only one of train and val has the classes {', '.join(only[:5])}.")
    for split, name in (("train", "training"), ("val", "evaluation")):
        classes = len(sources[split].classes)
        if classes != data.num_classes:
            raise ConfigError(
                f"data.num_classes={data.num_classes}: data={data.name} has {classes} classes in its {name} split."
            )
    return sources


def pack_split(
    source: Source,
    folder: Path,
    split: str,
    recipe: RecipeConfig,
    *,
    workers: int,
    on_error: str = "stop",
    force: bool = False,
) -> Packed:
    """Make ``<folder>/<split>.bin`` and its index, or go on with making them, or leave them if they are there.

    Recipe original copies the files as they are and refuses only empty ones; ``python -m geexp.check_data`` decodes
    them all. The others decode with Pillow, shrink what is larger than the recipe says (bilinear, antialiased), and
    keep the pixels (raw) or encode them again (jpeg).

    Args:
        on_error: ``stop`` at an image that cannot be read, or ``skip``: leave it out.
        force: replace a finished pack, which stays in use until the new one is whole.

    Raises:
        DataError: for an unreadable image, a full disk, or another pack at this place.
    """
    start = time.monotonic()
    path, n = folder / f"{split}.bin", len(source)
    names = [source.relative_name(index) for index in range(n)]
    said = {"recipe": json.dumps(asdict(recipe), sort_keys=True), "source": _digest_of(source, names)}
    partial = PartialPack(path, said)
    if not partial.begun() and not force and index_path(path).exists():
        index = _finished(path, recipe, said)
        partial.discard_journal()
        log.info("%s is there already (force=true makes it again)", path)
        return _packed(split, path, index, n, None)
    try:
        with partial:
            if on_error == "stop":
                partial.keep_until_left_out()
            if partial.count:
                log.info("%s: %d of %d images are packed already", path, partial.count, n)
            if recipe.name == "original":
                _require_space(path, _bytes_from(source, partial.count))
            try:
                _fill(partial, source, recipe, workers, on_error)
            except KeyboardInterrupt:
                log.warning("interrupted: %d of %d images of %s are packed. %s", partial.count, n, path.name, _GO_ON)
                raise
            rows = partial.all_rows()
            index = _index(source, names, rows, recipe, said)
            partial.finish(index)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _disk_full(partial, source, recipe, error) from error
    left_out = [names[row] for row in np.flatnonzero(_lengths(rows) == 0)]
    if left_out:
        log.warning("%s: %d images could not be read and are left out: %s", path, len(left_out), ", ".join(left_out))
    return _packed(split, path, index, n, round(time.monotonic() - start, 1))


def shrunk_size(width: int, height: int, recipe: RecipeConfig) -> tuple[int, int]:
    """Width and height of what the recipe stores; rounded as torchvision's ``Resize`` rounds, and never enlarged.

    So pixels with a short side of 256 are those that evaluation on 256 would make itself.
    """
    side = min(width, height) if recipe.short_side is not None else max(width, height)
    target = recipe.short_side if recipe.short_side is not None else recipe.max_side
    assert target is not None
    if side <= target:
        return width, height
    short_width, short_height = (target if s == side else max(1, int(target * s / side)) for s in (width, height))
    return short_width, short_height


def _fill(partial: PartialPack, source: Source, recipe: RecipeConfig, workers: int, on_error: str) -> None:
    with (
        meter(f"packing {partial.path.name}", len(source), partial.count) as advance,
        closing(_records(source, recipe, partial.count, workers)) as made,
    ):
        for results in made:
            records = []
            for index, result in enumerate(results, partial.count):
                if isinstance(result, Record):
                    records.append(result)
                    continue
                about = f"cannot read {source.name(index)} (image {index}): {result}"
                if on_error == "stop":
                    partial.append(records)
                    raise DataError(f"{about}. Replace the file, or leave it out: on_error=skip. {_GO_ON}") from result
                log.warning("left out: %s", about)
                records.append(_LEFT_OUT)
            partial.append(records)
            advance(len(records), sum(len(record.content) for record in records))


def _records(source: Source, recipe: RecipeConfig, first: int, workers: int) -> Generator[list[Record | Exception]]:
    """Records in order, some at a time, made by threads a little ahead; an exception for what cannot be read."""

    def make(indices: range) -> list[Record | Exception]:
        return [_record(source, recipe, index) for index in indices]

    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        under_way: deque[Future[list[Record | Exception]]] = deque()
        try:
            for start in range(first, len(source), _IMAGES):
                under_way.append(pool.submit(make, range(start, min(start + _IMAGES, len(source)))))
                if len(under_way) > workers * _AHEAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _record(source: Source, recipe: RecipeConfig, index: int) -> Record | Exception:
    try:
        content = source.content(index)
        if not len(content):
            raise ValueError("the file is empty")
        return _by_recipe(content, recipe)
    except DAMAGED as error:
        return error


def _by_recipe(content: np.ndarray, recipe: RecipeConfig) -> Record:
    """What is stored of the content of an image file."""
    if recipe.name == "original":
        return Record(content.data, digest(content.data), 0, 0)
    image = open_with_pil(content)
    size = shrunk_size(*image.size, recipe)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)  # with antialiasing, which is Pillow's way of shrinking
    if recipe.name == "raw":
        pixels = image.tobytes()
        return Record(pixels, digest(pixels), image.height, image.width)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=recipe.quality)
    return Record(buffer.getvalue(), digest(buffer.getvalue()), image.height, image.width)


def _index(source: Source, names: list[str], rows: np.ndarray, recipe: RecipeConfig, said: dict[str, str]) -> PackIndex:
    there = np.flatnonzero(_lengths(rows))
    left_out = [names[row] for row in np.flatnonzero(_lengths(rows) == 0)]
    if not len(there):
        raise DataError(f"not one of the {len(rows)} images can be read; see python -m geexp.check_data")
    rows = rows[there]
    joined, name_ends = join_names(names[index] for index in there)
    pixels = recipe.name == "raw"
    return PackIndex(
        format=np.array(FORMAT),
        recipe=np.array(said["recipe"]),
        source=np.array(said["source"]),
        classes=np.array(source.classes),
        labels=source.labels[there],
        ends=rows["end"].astype(np.int64),
        digests=rows["digest"].astype(np.uint64),
        names=joined,
        name_ends=name_ends,
        heights=rows["height"].astype(np.int32)[: None if pixels else 0],
        widths=rows["width"].astype(np.int32)[: None if pixels else 0],
        left_out=np.array(left_out, dtype=str),
    )


def _finished(path: Path, recipe: RecipeConfig, said: dict[str, str]) -> PackIndex:
    """The index of the pack that is there, which must be the one that is wanted."""
    index, _ = read_index(path)
    theirs = json.loads(str(index.recipe))
    if theirs != asdict(recipe):
        other = f"recipe {recipe_slug(RecipeConfig(**theirs))} instead of {recipe_slug(recipe)}"
    elif str(index.source) != said["source"]:
        other = "other images"
    else:
        return index
    raise DataError(
        f"{path} is a pack of {other}. Choose another folder with out=<folder>, or replace it with force=true."
    )


def _packed(split: str, path: Path, index: PackIndex, n: int, seconds: float | None) -> Packed:
    images = len(index.labels)
    return Packed(split, str(path), images, n - images, len(index.classes), int(index.ends[-1]), seconds)


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.diff(rows["end"], prepend=0)


def _digest_of(source: Source, names: list[str]) -> str:
    """Of which images it is a pack, wherever they lie."""
    whole = hashlib.blake2b(digest_size=16)
    for part in ("\0".join(source.classes), "\0".join(names)):
        whole.update(os.fsencode(part) + b"\0\0")
    whole.update(source.labels.tobytes())
    return whole.hexdigest()


def _bytes_from(source: Source, first: int) -> int:
    """What the images from ``first`` on take as they are, but for those that packing will find to be unreadable."""

    def bytes_of(indices: range) -> int:
        total = 0
        for index in indices:
            with suppress(OSError):
                total += source.size(index)
        return total

    with ThreadPoolExecutor() as pool:  # many, since they wait for the disk or the network
        starts = range(first, len(source), 1024)
        return sum(pool.map(bytes_of, (range(start, min(start + 1024, len(source))) for start in starts)))


def _disk_full(partial: PartialPack, source: Source, recipe: RecipeConfig, error: OSError) -> DataError:
    if recipe.name == "original":
        more = _bytes_from(source, partial.count)
    else:
        more = partial.size // max(partial.count, 1) * (len(source) - partial.count)
    need = f"the others need about {decimal(more)} more" if more else "it is not known how much the others need"
    return DataError(
        f"{partial.path}: {error.strerror}. {partial.count:,} of {len(source):,} images are packed, and {need}. "
        f"Free up space. {_GO_ON}"
    )


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DataError(
            f"{path.parent}: {path.name} needs {decimal(needed)} and {decimal(free)} are free. Free up space, choose "
            "another folder with out=<folder>, or a recipe that shrinks images: recipe=jpeg."
        )
