"""``what=feed``: speed and pixels of every feed, against the reference feed in the same run.

What counts is processor time an image, of this process and of its workers, with one thread of torch. Each round goes
once through all feeds, and a ratio is the median of the rounds' ratios, so other load falls on all feeds alike. Files
are in the page cache. Packs are read by threads. Normalising is the device's work: only the reference feed, ``folder,
normalised`` and ``resident`` do it here.
"""

import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from geexp.benchmarks.feed_cases import (
    PHOTOS,
    PIXEL_TARGETS,
    REFERENCE,
    RESIDENT,
    SMALL,
    SPEED_TARGETS,
    FeedCase,
    decoders,
    photo_cases,
)
from geexp.benchmarks.photographs import make_photo_folder
from geexp.benchmarks.stopwatch import Timing, timed
from geexp.config.errors import ConfigError
from geexp.config.schema import BenchmarkConfig, DataConfig
from geexp.data.decode import Decoder, decode_with_pil
from geexp.data.feeds import Feed, make_feed, normalised
from geexp.data.folder import FolderImages
from geexp.data.images import ArrayImages, Decoding, Images
from geexp.data.order import FixedOrder, TrainingOrder
from geexp.data.pack import open_pack
from geexp.data.packing import pack_split
from geexp.data.reading import processors

log = logging.getLogger(__name__)

_SEED = 0
_SMALL_BATCH = 128
_SMALL_PER_PHOTO = 20


@dataclass(frozen=True)
class Speed:
    """A row: milliseconds of processor an image, and how many times less that is than the reference's (low … high)."""

    feed: str
    path: str
    milliseconds: float
    images_per_second: float
    ratio: float
    low: float
    high: float
    target: float | None

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio >= self.target


@dataclass(frozen=True)
class Pixels:
    """A row: the mean difference from the reference in levels of 255, over all images and of the worst one."""

    feed: str
    path: str
    mean: float
    worst: float
    target: float | None

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.mean <= self.target


@dataclass(frozen=True)
class FeedReport:
    """What was measured, on which images."""

    images: str
    speed: list[Speed]
    pixels: list[Pixels]


class Chosen(Decoding):
    """Some images of a folder, evenly spread."""

    def __init__(self, folder: Path, number: int) -> None:
        self.images = FolderImages(folder)
        self.indices = np.linspace(0, len(self.images) - 1, min(number, len(self.images))).astype(np.int64)
        self.classes, self.labels = self.images.classes, self.images.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def relative_name(self, index: int) -> str:
        return self.images.relative_name(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.indices[index]))

    def size(self, index: int) -> int:
        return self.images.size(int(self.indices[index]))

    def content(self, index: int) -> np.ndarray:
        return self.images.content(int(self.indices[index]))


def benchmark_feeds(config: BenchmarkConfig) -> FeedReport:
    """Measure all feeds on the images of ``config.root``, or on realistic ones made for it.

    Raises:
        ConfigError: if ``root`` has too few images, or images are to be made and scikit-image is not installed.
        DataError: if an image cannot be read.
    """
    torch.set_num_threads(1)
    given = None if config.root is None else _splits(Path(config.root).expanduser(), config)
    with tempfile.TemporaryDirectory(prefix="geexp-benchmark-") as temporary, _remembering_in(Path(temporary)):
        splits = given or _splits(_make_photos(Path(temporary) / "photos", config.images), config)
        speed, pixels = [], []
        for path, images in splits.items():
            cases = photo_cases(path, config.workers)
            opened = {case.name: _open(case, images, path, Path(temporary) / "packs") for case in cases}
            speed += _speed(path, cases, opened, PHOTOS, config.batch_size, config.rounds)
            pixels += [
                _difference(case, path, images, opened[case.name])
                for case in cases
                if case.name == "folder" or case.feed.name == "pack"
                # The windows of shrunken images are drawn anew: only the centres can be compared.
                if path == "eval" or case.recipe.name == "original"
            ]
        decoded = [_decoded(name, splits["train"]) for name in decoders() if name != "pil"]
        small = small_images(splits["train"], _SMALL_PER_PHOTO)
        both = [REFERENCE, RESIDENT]
        speed += _speed("small", both, {case.name: small for case in both}, SMALL, _SMALL_BATCH, config.rounds)
    numbers = " + ".join(str(len(images)) for images in splits.values())
    return FeedReport(
        f"{numbers} images {f'of {config.root}' if config.root else 'made for this'}", speed, decoded + pixels
    )


def _splits(root: Path, config: BenchmarkConfig) -> dict[str, Chosen]:
    splits = {"train": Chosen(root / "train", config.images), "eval": Chosen(root / "val", config.images)}
    if len(splits["train"]) < config.batch_size:
        raise ConfigError(f"batch_size={config.batch_size}: {root} has only {len(splits['train'])} training images.")
    return splits


def _make_photos(folder: Path, images: int) -> Path:
    made = make_photo_folder(folder, classes=min(16, images), train=images, val=images)
    log.info("made %d realistic images in %s, for the time of the benchmark", made.train + made.val, folder)
    return folder


@contextmanager
def _remembering_in(folder: Path) -> Iterator[None]:
    """What is remembered of images and packs that are soon deleted goes with them."""
    before = os.environ.get("GEEXP_CACHE")
    os.environ["GEEXP_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        del os.environ["GEEXP_CACHE"]
        if before is not None:
            os.environ["GEEXP_CACHE"] = before


def _open(case: FeedCase, images: Chosen, path: str, packs: Path) -> Images:
    if case.feed.name != "pack":
        return images
    folder, split = packs / case.recipe.name, "train" if path == "train" else "val"
    pack_split(images, folder, split, case.recipe, workers=processors())
    return open_pack(folder, split, case.recipe)


def small_images(images: Images, per_image: int) -> ArrayImages:
    """Windows of 32x32 of real images: CIFAR-shaped, for what does not depend on what is seen in them."""
    rng, decode, size = np.random.default_rng(_SEED), Decoder(), SMALL.image_size
    windows = []
    for index in range(len(images)):
        pixels = images.pixels(index, decode)
        if min(pixels.shape[:2]) <= size:
            continue
        for top, left in rng.integers(0, np.array(pixels.shape[:2]) - size, (per_image, 2)):
            windows.append(pixels[top : top + size, left : left + size].numpy())
    return ArrayImages(np.stack(windows), np.arange(len(windows)) % SMALL.num_classes)


def _speed(
    path: str, cases: list[FeedCase], opened: dict[str, Images], data: DataConfig, batch_size: int, rounds: int
) -> list[Speed]:
    """One row per case; the first case is the reference."""
    feeds = [_feed(case, opened[case.name], data, path, batch_size, fixed=path == "eval") for case in cases]
    timings: dict[str, list[Timing]] = {case.name: [] for case in cases}
    turns = [(round_, *pair) for round_ in range(rounds + 1) for pair in zip(cases, feeds, strict=True)]
    for round_, case, feed in track(
        turns,
        f"measuring {path}",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
        auto_refresh=False,  # no other thread while measuring
    ):
        timings[case.name].append(timed(partial(_run_epoch, case, feed, data, round_)))
    reference = timings[cases[0].name][1:]  # the first round warms up
    return [_speed_row(case.name, path, reference, timings[case.name][1:]) for case in cases]


def _run_epoch(case: FeedCase, feed: Feed, data: DataConfig, epoch: int) -> int:
    if isinstance(feed.sampler, TrainingOrder):
        feed.sampler.set_epoch(epoch)
    images = 0
    for batch, labels in feed:
        if case.normalised:
            normalised(batch, data.mean, data.std)
        images += len(labels)
    return images


def _speed_row(name: str, path: str, reference: list[Timing], timings: list[Timing]) -> Speed:
    ratios = [(r.processor / r.images) / (t.processor / t.images) for r, t in zip(reference, timings, strict=True)]
    return Speed(
        feed=name,
        path=path,
        milliseconds=1e3 * statistics.median(t.processor / t.images for t in timings),
        images_per_second=statistics.median(t.images / t.wall for t in timings),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        target=SPEED_TARGETS.get((name, path)),
    )


def _feed(case: FeedCase, images: Images, data: DataConfig, path: str, batch_size: int, *, fixed: bool) -> Feed:
    order: TrainingOrder | FixedOrder
    if fixed:
        order = FixedOrder(len(images), batch_size=batch_size)
    else:
        order = TrainingOrder(len(images), batch_size=batch_size, seed=_SEED)
    device = torch.device("cpu")
    return make_feed(images, data, case.feed, train=path != "eval", order=order, seed=_SEED, device=device)


def _decoded(decoder: str, images: Chosen) -> Pixels:
    """A decoder against Pillow."""
    decode = Decoder(decoder)
    contents = (images.content(index) for index in range(len(images)))
    differences = [_mean_difference(decode(content), decode_with_pil(content)) for content in contents]
    return _pixels_row(decoder, "decode", differences)


def _difference(case: FeedCase, path: str, originals: Images, images: Images) -> Pixels:
    """The same images in the same order, through the reference feed and through another."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (PHOTOS.mean, PHOTOS.std))
    reference = _feed(REFERENCE, originals, PHOTOS, path, batch_size=16, fixed=True)
    other = _feed(case, images, PHOTOS, path, batch_size=16, fixed=True)
    differences = []
    for (expected, _), (given, _) in zip(reference, other, strict=True):
        levels = (expected * std + mean).mul(255).round()
        differences += [_mean_difference(*pair) for pair in zip(levels, given, strict=True)]
    return _pixels_row(case.name, path, differences)


def _mean_difference(one: Tensor, other: Tensor) -> float:
    return (one.float() - other.float()).abs().mean().item()


def _pixels_row(name: str, path: str, differences: list[float]) -> Pixels:
    return Pixels(name, path, statistics.fmean(differences), max(differences), PIXEL_TARGETS.get((name, path)))
