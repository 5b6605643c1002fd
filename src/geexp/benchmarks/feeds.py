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
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from geexp.benchmarks.feed_cases import (
    PHOTOS,
    REFERENCE,
    RESIDENT,
    SMALL,
    FeedCase,
    decoders,
    feed_targets,
    photo_cases,
)
from geexp.benchmarks.photographs import make_photo_folder
from geexp.benchmarks.rows import Column, Comparison, Row
from geexp.benchmarks.stopwatch import Timing, timed
from geexp.config.benchmark import FeedSettings
from geexp.config.errors import ConfigError
from geexp.config.schema import DataConfig
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
_REMARKS = [
    "ms/img: of processor time, all threads and workers counted; / reference: over the reference feed's in the same "
    "round (low-high over the rounds). Differences of pixels from the reference's in levels of 255; of decoders, from "
    "Pillow's."
]


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


def benchmark_feeds(settings: FeedSettings) -> Comparison:
    """Measure all feeds on the images of ``root``, or on realistic ones made for it.

    Raises:
        ConfigError: if ``root`` has too few images, or images are to be made and scikit-image is not installed.
        DataError: if an image cannot be read.
    """
    torch.set_num_threads(1)
    given = None if settings.root is None else _splits(Path(settings.root).expanduser(), settings)
    rows = []
    with tempfile.TemporaryDirectory(prefix="geexp-benchmark-") as temporary, _remembering_in(Path(temporary)):
        splits = given or _splits(_make_photos(Path(temporary) / "photos", settings.images), settings)
        rows += [Row("decode", name, {}, _decoded(name, splits["train"])) for name in decoders() if name != "pil"]
        for path, images in splits.items():
            cases = photo_cases(path, settings.workers)
            opened = {case.name: _open(case, images, path, Path(temporary) / "packs") for case in cases}
            times = _times(path, cases, opened, PHOTOS, settings.batch_size, settings.rounds)
            for case in cases:
                # The windows of shrunken images are drawn anew: only the centres can be compared.
                comparable = path == "eval" or case.recipe.name == "original"
                compared = comparable and (case.name == "folder" or case.feed.name == "pack")
                pixels = _difference(case, path, images, opened[case.name]) if compared else {}
                rows.append(Row(path, case.name, times[case.name], pixels))
        small = small_images(splits["train"], _SMALL_PER_PHOTO)
        both = [REFERENCE, RESIDENT]
        times = _times("small", both, {case.name: small for case in both}, SMALL, _SMALL_BATCH, settings.rounds)
        rows += [Row("small", case.name, times[case.name]) for case in both]
    numbers = " + ".join(str(len(images)) for images in splits.values())
    origin = f"of {settings.root}" if settings.root else "made for this"
    columns = [
        Column("ms/img", "processor", scale=1e3, digits=3),
        Column("/ reference", "processor", against=(REFERENCE.name,), digits=3),
        Column("wall ms/img", "wall", scale=1e3, digits=3),
        Column("mean difference", "pixels", digits=4),
        Column("of the worst image", "worst_image", digits=4),
    ]
    return Comparison(f"Feeds on {numbers} images {origin}", columns, rows, feed_targets(), _REMARKS)


def _splits(root: Path, settings: FeedSettings) -> dict[str, Chosen]:
    splits = {"train": Chosen(root / "train", settings.images), "eval": Chosen(root / "val", settings.images)}
    if len(splits["train"]) < settings.batch_size:
        raise ConfigError(f"batch_size={settings.batch_size}: {root} has only {len(splits['train'])} training images.")
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


def _times(
    path: str, cases: list[FeedCase], opened: dict[str, Images], data: DataConfig, batch_size: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds an image, of processor and of wall time, in every round; by name of the case."""
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
    return {
        name: {
            "processor": [one.processor / one.images for one in ones[1:]],  # the first round warms up
            "wall": [one.wall / one.images for one in ones[1:]],
        }
        for name, ones in timings.items()
    }


def _run_epoch(case: FeedCase, feed: Feed, data: DataConfig, epoch: int) -> int:
    if isinstance(feed.sampler, TrainingOrder):
        feed.sampler.set_epoch(epoch)
    images = 0
    for batch, labels in feed:
        if case.normalised:
            normalised(batch, data.mean, data.std)
        images += len(labels)
    return images


def _feed(case: FeedCase, images: Images, data: DataConfig, path: str, batch_size: int, *, fixed: bool) -> Feed:
    order: TrainingOrder | FixedOrder
    if fixed:
        order = FixedOrder(len(images), batch_size=batch_size)
    else:
        order = TrainingOrder(len(images), batch_size=batch_size, seed=_SEED)
    device = torch.device("cpu")
    return make_feed(images, data, case.feed, train=path != "eval", order=order, seed=_SEED, device=device)


def _decoded(decoder: str, images: Chosen) -> dict[str, float | None]:
    """A decoder against Pillow."""
    decode = Decoder(decoder)
    contents = (images.content(index) for index in range(len(images)))
    differences = [_mean_difference(decode(content), decode_with_pil(content)) for content in contents]
    return _levels(differences)


def _difference(case: FeedCase, path: str, originals: Images, images: Images) -> dict[str, float | None]:
    """The same images in the same order, through the reference feed and through another."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (PHOTOS.mean, PHOTOS.std))
    reference = _feed(REFERENCE, originals, PHOTOS, path, batch_size=16, fixed=True)
    other = _feed(case, images, PHOTOS, path, batch_size=16, fixed=True)
    differences = []
    for (expected, _), (given, _) in zip(reference, other, strict=True):
        levels = (expected * std + mean).mul(255).round()
        differences += [_mean_difference(*pair) for pair in zip(levels, given, strict=True)]
    return _levels(differences)


def _mean_difference(one: Tensor, other: Tensor) -> float:
    return (one.float() - other.float()).abs().mean().item()


def _levels(differences: list[float]) -> dict[str, float | None]:
    """The mean difference in levels of 255, over all images and of the worst one."""
    return {"pixels": statistics.fmean(differences), "worst_image": max(differences)}
