"""Images with boxes in batches, and the DataModule of detection."""

import math
import os
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image
from torch import Tensor

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.decode import DAMAGED, Decoder, take_conversions
from geexp.data.feeds import ResumableFeed
from geexp.data.module import FeedData, share_of_ranks
from geexp.data.order import FixedOrder, Key, TrainingOrder, mix
from geexp.data.parallel import processors
from geexp.data.reading import Unreadable, Workers, read_or_replace
from geexp.data.record import source_of
from geexp.detection.coco import CocoImages, require_same_classes
from geexp.registry import locate
from geexp.runs.data_record import DataRecord, SplitRecord, digest_of


class DetectionBatch(NamedTuple):
    """``images`` uint8 ``[3, H, W]`` of any sizes, their ``targets`` as torchvision's detectors take them, COCO ids.

    ``skipped_ids`` are of images left out of an evaluation because they cannot be read. For the other fields see
    ``geexp.data.reading.Batch``; a feed removes them.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    image_ids: list[int]
    skipped_ids: tuple[int, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    fallbacks: int = 0
    conversions: frozenset[str] = frozenset()

    def inputs(self) -> list[Tensor]:
        """The images as torchvision's detectors take them, float32 in 0 … 1."""
        return [image.float() / 255 for image in self.images]


class DetectionReader:
    """Keys (epoch, index) → a batch.

    Args:
        flip: mirror half of the images, the only augmentation of He et al. 2016. Which ones is a pure function of
            (seed, epoch, index).
        decode: the backend of ``geexp.data.decode.Decoder``.
        replace: read others in place of unreadable images, instead of leaving them out.
    """

    def __init__(
        self, images: CocoImages, *, flip: bool, seed: int = 0, decode: str = "auto", replace: bool = False
    ) -> None:
        self.images, self.flip, self.seed, self.decode, self.replace = images, flip, seed, Decoder(decode), replace

    def __getitems__(self, keys: list[Key]) -> DetectionBatch:  # called by a DataLoader with the keys of a batch
        images, targets, image_ids, skipped_ids = [], [], [], []
        unreadable: list[Unreadable] = []
        for key in keys:

            def read(index: int, epoch: int = key[0]) -> tuple[Tensor, dict[str, Tensor]]:
                return self.read_one((epoch, index))

            found = read_or_replace(read, key, self.images, unreadable, seed=self.seed, replace=self.replace)
            if found is None:
                skipped_ids.append(self.images.image_id(key[1]))
                continue
            index, (image, target) = found
            images.append(image)
            targets.append(target)
            image_ids.append(self.images.image_id(index))
        notes = tuple(unreadable), self.decode.take_fallbacks(), take_conversions()
        return DetectionBatch(images, targets, image_ids, tuple(skipped_ids), *notes)

    def read_one(self, key: Key) -> tuple[Tensor, dict[str, Tensor]]:
        """The image ``uint8 [3, H, W]`` and its target.

        Raises:
            OSError, ValueError: for a file that cannot be read, or whose size differs from the annotations.
        """
        epoch, index = key
        content, target = np.fromfile(self.images.name(index), dtype=np.uint8), self.images.target(index)
        image = self.decode(content).permute(2, 0, 1)
        if (wrong := disagreement(self.images, index, image)) is not None:
            raise ValueError(wrong)
        if self.flip and mix(self.seed, "flip", epoch, index) % 2:
            image = image.flip(2)
            target["boxes"][:, [0, 2]] = image.shape[2] - target["boxes"][:, [2, 0]]
        return image.contiguous(), target


class DetectionFeed(ResumableFeed[DetectionBatch]):
    """Batches in an order, made by ``workers`` processes; with 0, by this one.

    Args:
        processes: of this machine that have such workers.
    """

    def __init__(
        self,
        reader: DetectionReader,
        order: TrainingOrder | FixedOrder,
        *,
        workers: int = 0,
        processes: int = 1,
        pin: bool = False,
        on_error: str = "stop",
    ) -> None:
        super().__init__(order, on_error)
        pixels = sum(math.prod(reader.images.size(index)) for index in range(len(reader.images)))
        image_bytes = 3 * pixels // len(reader.images) + 3 * 4096  # on average; three tensors in pages of their own
        self._batches: Any = Workers(reader, order, workers, image_bytes=image_bytes, processes=processes, pin=pin)

    def batches(self) -> Iterator[DetectionBatch]:
        for batch in self._batches:
            self.note(batch)
            yield batch._replace(unreadable=(), fallbacks=0, conversions=frozenset())


class DetectionData(FeedData):
    """Batches of images and their boxes. Evaluation shows every image of its split once over all ranks.

    Args:
        batch_size: of all ranks together.

    Raises:
        DataError, ConfigError: see ``open_split``.
    """

    def __init__(self, data: DataConfig, feed: FeedConfig, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data, self.feed, self.batch_size, self.seed = data, feed, batch_size, seed
        self.training_images, self.evaluation_images = open_split(data, train=True), open_split(data, train=False)
        require_same_classes(self.training_images, self.evaluation_images)

    @cached_property
    def training_feed(self) -> DetectionFeed:
        share = share_of_ranks(self.trainer, self.batch_size, train=True)
        order = TrainingOrder(len(self.training_images), seed=self.seed, **share)
        return self._feed(self.training_images, order, train=True)

    @cached_property
    def evaluation_feed(self) -> DetectionFeed:
        share = share_of_ranks(self.trainer, self.batch_size, train=False)
        return self._feed(self.evaluation_images, FixedOrder(len(self.evaluation_images), **share), train=False)

    def record(self) -> DataRecord:
        train, val = _record(self.training_images), _record(self.evaluation_images)
        return DataRecord.of(source_of(self.data, self.feed), self.training_images.classes, train, val)

    def account(self) -> dict[str, Any]:
        """As of every ``FeedData``, and the numbers of images and annotations that training leaves out."""
        account = super().account()
        return {
            "train": self.training_images.left_out | account["train"],
            "val": self.evaluation_images.left_out | account["val"],
        }

    def _feed(self, images: CocoImages, order: TrainingOrder | FixedOrder, *, train: bool) -> DetectionFeed:
        trainer: Any = self.trainer
        device, processes = trainer.strategy.root_device, trainer.num_devices
        workers = max(1, processors() // processes) if self.feed.workers is None else self.feed.workers
        reader = DetectionReader(
            images,
            flip=train and self.data.augmentation.flip,
            seed=self.seed,
            decode=self.feed.decode,
            replace=train and self.feed.on_error == "skip",
        )
        where: dict[str, Any] = {"workers": workers, "processes": processes, "pin": device.type == "cuda"}
        feed = DetectionFeed(reader, order, on_error=self.feed.on_error, **where)
        feed.logged = self._logged
        return feed


def open_split(data: DataConfig, *, train: bool, everything: bool = False) -> CocoImages:
    """The training or the evaluation split of a configured set.

    Its ``_target_`` is called with ``root``, ``split`` (one of ``data.splits``), ``train`` and the file's arguments.
    With ``everything``, it has all images, to check them.

    Raises:
        DataError: as ``CocoImages``.
        ConfigError: if the number of classes is not ``data.num_classes``.
    """
    where = {"root": Path(str(data.root)), "split": data.splits[0 if train else 1]}
    options = {"everything": True} if everything else {}
    images: CocoImages = locate(str(data._target_))(**where, train=train, **options, **data.arguments)
    if len(images.classes) != data.num_classes:
        raise ConfigError(
            f"data.num_classes={data.num_classes}: {images.path} has {len(images.classes)} categories "
            f"({', '.join(images.classes[:3])}, …)."
        )
    return images


def _record(images: CocoImages) -> SplitRecord:
    names = (images.name(index).removeprefix(f"{images.folder}/") for index in range(len(images)))
    return SplitRecord(len(images), digest_of(map(os.fsencode, names)))


def read_image(decode: Decoder, path: str) -> Tensor:
    """The image ``uint8 [3, H, W]`` of a file. Raises ``DataError`` if it cannot be read as one."""
    try:
        return decode(np.fromfile(path, dtype=np.uint8)).permute(2, 0, 1).contiguous()
    except DAMAGED as error:
        raise DataError(f"{path}: cannot be read as an image ({error}). Fetch it again.") from error


def disagreement(images: CocoImages, index: int, image: Tensor) -> str | None:
    """Why the pixels ``uint8 [3, H, W]`` of an image do not fit its annotations; None if they do."""
    height, width = image.shape[1:]
    annotated = images.size(index)
    if (height, width) == annotated:
        return None
    sizes = f"{width}x{height} pixels, but annotated as {annotated[1]}x{annotated[0]}"
    orientation = exif_orientation(images.name(index))
    if orientation >= 5 and (width, height) == annotated:
        return (
            f"{sizes}: its EXIF orientation ({orientation}) rotates it, and its boxes are of the rotated image. Pixels "
            "are read as they are stored: rotate the file itself, as ImageMagick's mogrify -auto-orient does."
        )
    return f"{sizes}. Its boxes are of the annotated size: fetch the image again, or correct its annotations."


def exif_orientation(path: str) -> int:
    """1 (as stored) to 8, by EXIF; from 5 on width and height are exchanged. 1 if the file has none."""
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, ValueError, TypeError, SyntaxError, struct.error):  # damaged EXIF data
        return 1
