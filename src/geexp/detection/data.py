"""Images with boxes in batches, and the DataModule of detection."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from PIL import ExifTags, Image
from torch import Tensor

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.decode import DAMAGED, Decoder
from geexp.data.feeds import ResumableFeed
from geexp.data.module import share_of_ranks
from geexp.data.order import FixedOrder, Key, TrainingOrder, mix
from geexp.data.parallel import processors
from geexp.data.reading import Workers
from geexp.detection.coco import CocoImages, require_same_classes
from geexp.registry import locate


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
        if (wrong := disagreement(self.images, index, image)) is not None:
            raise DataError(f"{self.images.name(index)}: {wrong}")
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

    def account(self) -> dict[str, Any]:
        """Numbers of images and annotations that training leaves out."""
        return {"train": self.training_images.left_out, "val": self.evaluation_images.left_out}

    def _feed(self, images: CocoImages, order: TrainingOrder | FixedOrder, *, flip: bool) -> DetectionFeed:
        trainer: Any = self.trainer
        device = trainer.strategy.root_device
        workers = max(1, processors() // trainer.num_devices) if self.feed.workers is None else self.feed.workers
        reader = DetectionReader(images, flip=flip, seed=self.seed, decode=self.feed.decode)
        return DetectionFeed(reader, order, workers=workers, pin=device.type == "cuda")


def open_split(data: DataConfig, *, train: bool, everything: bool = False) -> CocoImages:
    """The training or the evaluation split of a configured set.

    Its ``_target_`` is called with ``root``, ``split`` (one of ``data.splits``), ``train`` and the file's arguments.
    With ``everything``, it has all images, to check them.

    Raises:
        DataError: as ``CocoImages``.
        ConfigError: if the number of classes is not ``data.num_classes``.
    """
    where = {"root": Path(str(data.root)).expanduser(), "split": data.splits[0 if train else 1]}
    options = {"everything": True} if everything else {}
    images: CocoImages = locate(str(data._target_))(**where, train=train, **options, **data.arguments)
    if len(images.classes) != data.num_classes:
        raise ConfigError(
            f"data.num_classes={data.num_classes}: {images.path} has {len(images.classes)} categories "
            f"({', '.join(images.classes[:3])}, …)."
        )
    return images


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
