"""Images with boxes in batches, and the DataModule of detection."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.decode import DAMAGED, Decoder
from geexp.data.feeds import ResumableFeed
from geexp.data.module import share_of_ranks
from geexp.data.order import FixedOrder, Key, TrainingOrder, mix
from geexp.data.parallel import processors
from geexp.data.reading import Workers
from geexp.data.record import source_of
from geexp.detection.coco import CocoImages, require_same_classes
from geexp.registry import locate
from geexp.runs.data_record import DataRecord, SplitRecord, digest_of


class DetectionBatch(NamedTuple):
    """``images`` uint8 ``[3, H, W]`` of any sizes, their ``targets`` as torchvision's detectors take them, COCO ids."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    image_ids: list[int]

    def inputs(self) -> list[Tensor]:
        """The images as torchvision's detectors take them, float32 in 0 … 1."""
        return [image.float() / 255 for image in self.images]


class DetectionReader:
    """Keys (epoch, index) → a batch.

    Args:
        flip: mirror half of the images, the only augmentation of He et al. 2016. Which ones is a pure function of
            (seed, epoch, index).
        decode: the backend of ``geexp.data.decode.Decoder``.
    """

    def __init__(self, images: CocoImages, *, flip: bool, seed: int = 0, decode: str = "auto") -> None:
        self.images, self.flip, self.seed, self.decode = images, flip, seed, Decoder(decode)

    def __getitems__(self, keys: list[Key]) -> DetectionBatch:  # called by a DataLoader with the keys of a batch
        images, targets = zip(*(self.read_one(key) for key in keys), strict=True)
        return DetectionBatch(list(images), list(targets), [self.images.image_id(index) for _, index in keys])

    def read_one(self, key: Key) -> tuple[Tensor, dict[str, Tensor]]:
        """The image ``uint8 [3, H, W]`` and its target.

        Raises:
            DataError: for a file that is no image, or whose size differs from the annotations.
        """
        epoch, index = key
        image, target = read_image(self.decode, self.images.name(index)), self.images.target(index)
        if tuple(image.shape[1:]) != self.images.size(index):
            found, annotated = (f"{width}x{height}" for height, width in (image.shape[1:], self.images.size(index)))
            raise DataError(f"{self.images.name(index)}: {found} pixels, but annotated as {annotated}. Fetch it again.")
        if self.flip and mix(self.seed, "flip", epoch, index) % 2:
            image = image.flip(2)
            target["boxes"][:, [0, 2]] = image.shape[2] - target["boxes"][:, [2, 0]]
        return image.contiguous(), target


class DetectionFeed(ResumableFeed[DetectionBatch]):
    """Batches in an order, made by ``workers`` processes; with 0, by this one."""

    def __init__(
        self, reader: DetectionReader, order: TrainingOrder | FixedOrder, *, workers: int = 0, pin: bool = False
    ) -> None:
        super().__init__(order)
        self._batches: Any = Workers(reader, order, workers, pin=pin)

    def batches(self) -> Iterator[DetectionBatch]:
        yield from self._batches


class DetectionData(pl.LightningDataModule):
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

    def train_dataloader(self) -> DetectionFeed:
        share = share_of_ranks(self.trainer, self.batch_size, train=True)
        order = TrainingOrder(len(self.training_images), seed=self.seed, **share)
        return self._feed(self.training_images, order, flip=self.data.augmentation.flip)

    def val_dataloader(self) -> DetectionFeed:
        share = share_of_ranks(self.trainer, self.batch_size, train=False)
        return self._feed(self.evaluation_images, FixedOrder(len(self.evaluation_images), **share), flip=False)

    def record(self) -> DataRecord:
        train, val = _record(self.training_images), _record(self.evaluation_images)
        return DataRecord.of(source_of(self.data, self.feed), self.training_images.classes, train, val)

    def account(self) -> dict[str, Any]:
        """Numbers of images and annotations that training leaves out."""
        return {"train": self.training_images.left_out, "val": self.evaluation_images.left_out}

    def _feed(self, images: CocoImages, order: TrainingOrder | FixedOrder, *, flip: bool) -> DetectionFeed:
        trainer: Any = self.trainer
        device = trainer.strategy.root_device
        workers = max(1, processors() // trainer.num_devices) if self.feed.workers is None else self.feed.workers
        reader = DetectionReader(images, flip=flip, seed=self.seed, decode=self.feed.decode)
        return DetectionFeed(reader, order, workers=workers, pin=device.type == "cuda")


def open_split(data: DataConfig, *, train: bool) -> CocoImages:
    """The training or the evaluation split of a configured set.

    Its ``_target_`` is called with ``root``, ``split`` (one of ``data.splits``), ``train`` and the file's arguments.

    Raises:
        DataError: as ``CocoImages``.
        ConfigError: if the number of classes is not ``data.num_classes``.
    """
    where = {"root": Path(str(data.root)).expanduser(), "split": data.splits[0 if train else 1]}
    images: CocoImages = locate(str(data._target_))(**where, train=train, **data.arguments)
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
