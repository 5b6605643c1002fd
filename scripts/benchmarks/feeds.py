"""Compare speed and pixels of every feed with the reference feed.

    python scripts/benchmarks/feeds.py --root /data/imagenet --images 512

Times are processor time per image, of all threads of this process and its workers, with one torch thread;
/ reference: relative to the reference feed in the same round. Pixel differences are in levels of 255, relative to the
reference feed, for decoders relative to Pillow. Files are in the page cache. Normalisation happens on the device and is
included only for the reference feed, ``folder, normalised`` and ``resident``. Without ``--root`` synthetic photographs
are generated, see ``photographs.py``.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

import measuring
from geexp.config.compose import composed_training
from geexp.config.schema import DataConfig, FeedConfig, RecipeConfig
from geexp.data.decode import Decoder, decode_with_pil
from geexp.data.feeds import Feed, make_feed, normalised
from geexp.data.folder import FolderImages
from geexp.data.images import ArrayImages, Images
from geexp.data.order import FixedOrder, TrainingOrder
from geexp.data.pack import open_pack
from geexp.data.packing import pack_split
from geexp.data.parallel import processors
from measuring import Row, Target
from photographs import make_photo_folder

_SMALL_BATCH, _SMALL_IMAGES = 128, 5120


@dataclass(frozen=True)
class Case:
    """A feed to measure; ``recipe`` is that of its pack; with ``normalised`` the time includes normalisation."""

    name: str
    feed: FeedConfig
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    normalised: bool = False


REFERENCE = Case("reference", FeedConfig("reference", engine="workers", workers=0))
RESIDENT = Case("resident", FeedConfig("resident"), normalised=True)
DECODERS = [name for name in ("torchvision", "torchcodec") if find_spec(name)]


def cases_of(path: str, workers: int) -> list[Case]:
    """All feeds and engines for image files, the reference first; decoders in training only."""
    decoders = DECODERS[1:] if path == "train" else []
    recipes = [
        RecipeConfig("original"),
        RecipeConfig("jpeg", max_side=500, quality=90),
        RecipeConfig("raw", short_side=256),
    ]
    return [
        REFERENCE,
        Case("reference, workers", FeedConfig("reference", engine="workers", workers=workers)),
        Case("folder", FeedConfig("folder", workers=0)),
        *(Case(f"folder, {decoder}", FeedConfig("folder", workers=0, decode=decoder)) for decoder in decoders),
        Case("folder, normalised", FeedConfig("folder", workers=0), normalised=True),
        Case("folder, threads", FeedConfig("folder", engine="threads", workers=workers)),
        Case("folder, workers", FeedConfig("folder", engine="workers", workers=workers)),
        *(Case(f"pack {one.name}", FeedConfig("pack", engine="threads", workers=workers), one) for one in recipes),
    ]


def targets_of() -> Iterator[Target]:
    faster = {
        ("folder", "train"): 1.45,
        ("folder", "eval"): 1.7,
        ("folder, threads", "train"): 1.8,
        ("folder, workers", "train"): 1.6,
        ("pack jpeg", "train"): 3.0,
        ("pack raw", "train"): 8.0,
        ("resident", "small"): 15.0,
    }
    for (feed, path), bound in faster.items():
        yield Target(path, feed, "processor", "≥", bound, against=REFERENCE.name)
    pixels = {(name, "decode"): 0.0 for name in DECODERS} | {
        ("folder", "train"): 0.05,
        ("folder", "eval"): 0.01,
        ("pack original", "train"): 0.05,
        ("pack original", "eval"): 0.01,
    }
    for (feed, path), bound in pixels.items():
        yield Target(path, feed, "pixels", "≤", bound)


def measure_speed(
    path: str, cases: list[Case], images: Mapping[str, Images], data: DataConfig, options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Processor and wall-clock seconds per image in every round, by case."""
    print(f"measuring {path}", file=sys.stderr)
    batch_size = _SMALL_BATCH if path == "small" else options.batch_size
    epochs = {
        case.name: Epochs(case, open_feed(case, images[case.name], data, path, batch_size), data) for case in cases
    }
    times = measuring.interleaved(epochs, lambda work: work(), rounds=options.rounds)
    return {name: measuring.by_figure(one) for name, one in times.items()}


class Epochs:
    """A feed; each call reads its next epoch and returns seconds per image.

    Processor time covers all threads of this process and its living children.
    """

    def __init__(self, case: Case, feed: Feed, data: DataConfig) -> None:
        self.case, self.feed, self.data, self.epochs = case, feed, data, count()

    def __call__(self) -> dict[str, float]:
        if isinstance(self.feed.sampler, TrainingOrder):
            self.feed.sampler.set_epoch(next(self.epochs))
        children, processor, wall, images = children_seconds(), time.process_time(), time.perf_counter(), 0
        for batch, labels in self.feed:
            if self.case.normalised:
                normalised(batch, self.data.mean, self.data.std)
            images += len(labels)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        return {"processor": (processor + children_seconds() - children) / images, "wall": wall / images}


def children_seconds() -> float:
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(one.user + one.system for one in times)


def open_feed(case: Case, images: Images, data: DataConfig, path: str, batch_size: int, *, fixed: bool = False) -> Feed:
    """Open a feed; with ``fixed`` all images are in the order of their names, in training as well."""
    order: TrainingOrder | FixedOrder = TrainingOrder(len(images), batch_size=batch_size, seed=0)
    if fixed or path == "eval":
        order = FixedOrder(len(images), batch_size=batch_size)
    device = torch.device("cpu")
    return make_feed(images, data, case.feed, train=path != "eval", order=order, seed=0, device=device)


def open_images(case: Case, files: FolderImages, path: str, packs: Path) -> Images:
    """The files, or a pack of them, which is created first."""
    if case.feed.name != "pack":
        return files
    folder, split = packs / case.recipe.name, "train" if path == "train" else "val"
    pack_split(files, folder, split, case.recipe, workers=processors())
    return open_pack(folder, split, case.recipe)


def pixel_pairs(
    case: Case, files: Images, images: Images, data: DataConfig, path: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Levels of the same images in the same order, by the reference feed and by another."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    reference = open_feed(REFERENCE, files, data, path, batch_size=16, fixed=True)
    other = open_feed(case, images, data, path, batch_size=16, fixed=True)
    for (expected, _), (given, _) in zip(reference, other, strict=True):
        yield from zip((expected * std + mean).mul(255).round(), given, strict=True)


def decoded_pairs(decoder: str, files: FolderImages) -> Iterator[tuple[Tensor, Tensor]]:
    decode = Decoder(decoder)
    for index in range(len(files)):
        content = files.content(index)
        yield decode_with_pil(content), decode(content)


def mean_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """In levels of 255, over all images and of the worst one."""
    differences = [(one.float() - other.float()).abs().mean().item() for one, other in pairs]
    return {"pixels": statistics.fmean(differences), "worst_image": max(differences)}


def link_some(root: Path, number: int, folder: Path) -> None:
    """Create links in ``folder`` to evenly spaced images of a folder in ImageNet's layout."""
    for split in ("train", "val"):
        images = FolderImages(root / split)
        for index in np.linspace(0, len(images) - 1, min(number, len(images))).astype(int):
            link = folder / split / images.relative_name(index)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(images.name(index))


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--root", type=Path, help="a folder in ImageNet's layout; default: a temporary one")
    parser.add_argument("--images", type=measuring.positive, default=512, help="images per split (%(default)s)")
    parser.add_argument("--batch-size", type=measuring.positive, default=64)
    parser.add_argument("--workers", type=measuring.positive, default=2, help="threads or processes of the feeds")
    options = parser.parse_args()
    if options.images < options.batch_size:
        parser.error(f"--images {options.images}: fewer than one batch of --batch-size {options.batch_size}")
    if options.root and not all((options.root / split).is_dir() for split in ("train", "val")):
        parser.error(
            f"--root {options.root}: needs folders train and val, as in ImageNet. Create such a folder with "
            "scripts/benchmarks/photographs.py, or leave out --root"
        )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="geexp-benchmark-") as temporary:
        photos = Path(temporary, "photos")
        if options.root:
            link_some(options.root, options.images, photos)
        else:
            make_photo_folder(photos, classes=min(16, options.images), train=options.images, val=options.images)
        os.environ["GEEXP_CACHE"] = f"{temporary}/cache"  # indices and hashes of temporary files
        files = {path: FolderImages(photos / split) for path, split in (("train", "train"), ("eval", "val"))}
        if len(files["train"]) < options.batch_size:
            parser.error(f"--batch-size {options.batch_size}: {options.root} has fewer training images")
        rows = [*measure(files, Path(temporary, "packs"), options)]
    numbers = " + ".join(str(len(images)) for images in files.values())
    title = f"Feeds on {numbers} images {f'of {options.root}' if options.root else 'made for it'}"
    reference = {"/ reference": [REFERENCE.name]}
    measuring.report(title, rows, against=reference, targets=targets_of(), remarks=__doc__, options=options)


def measure(files: Mapping[str, FolderImages], packs: Path, options: argparse.Namespace) -> Iterator[Row]:
    for decoder in DECODERS:
        yield Row("decode", decoder, amounts=mean_difference(decoded_pairs(decoder, files["train"])))
    photos = composed_training("data=imagenet", "model=resnet50").data
    for path, images in files.items():
        cases = cases_of(path, options.workers)
        opened = {case.name: open_images(case, images, path, packs) for case in cases}
        seconds = measure_speed(path, cases, opened, photos, options)
        for case in cases:
            # Shrunken images have different random crops, so only centre crops can be compared.
            comparable = path == "eval" or case.recipe.name == "original"
            compared = comparable and (case.name == "folder" or case.feed.name == "pack")
            pairs = pixel_pairs(case, images, opened[case.name], photos, path)
            yield Row(path, case.name, seconds[case.name], mean_difference(pairs) if compared else {})
    pixels = np.random.default_rng(0).integers(0, 256, (_SMALL_IMAGES, 32, 32, 3), dtype=np.uint8)
    small = ArrayImages(pixels, np.arange(_SMALL_IMAGES) % 10)
    cases, cifar = [REFERENCE, RESIDENT], composed_training("data=cifar10").data
    seconds = measure_speed("small", cases, {case.name: small for case in cases}, cifar, options)
    yield from (Row("small", name, one) for name, one in seconds.items())


if __name__ == "__main__":
    main()
