"""Images and their boxes in batches: which come when, and how they are flipped, is a function of seed and epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geexp.config.errors import DataError
from geexp.data.decode import DAMAGED, Decoder
from geexp.data.feeds import ResumableFeed
from geexp.data.order import FixedOrder, Key, TrainingOrder, mix
from geexp.data.reading import explained_workers
from geexp.detection.coco import CocoImages


@dataclass
class DetectionBatch:
    """``images`` uint8 ``[3, H, W]`` of any sizes, their ``targets`` as the detector wants them, their COCO ids."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    image_ids: list[int]

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self) -> list[Tensor]:
        """The images as the detector wants them, float32 in 0 … 1."""
        return [image.float() / 255 for image in self.images]

    def to(self, device: torch.device, non_blocking: bool = False) -> "DetectionBatch":
        images = [image.to(device, non_blocking=non_blocking) for image in self.images]
        targets = [
            {key: value.to(device, non_blocking=non_blocking) for key, value in target.items()}
            for target in self.targets
        ]
        return DetectionBatch(images, targets, self.image_ids)

    def pin_memory(self) -> "DetectionBatch":
        return DetectionBatch([image.pin_memory() for image in self.images], self.targets, self.image_ids)


class DetectionDataset(Dataset):
    """Keys (epoch, index) → a batch.

    Args:
        flip: mirror half of the images, the only augmentation of He et al. 2016; which ones is a pure function of
            (seed, epoch, index), whoever reads them and whatever was read before.
        decode: the backend of ``geexp.data.decode.Decoder``.
    """

    def __init__(self, images: CocoImages, *, flip: bool, seed: int = 0, decode: str = "auto") -> None:
        self.images, self.flip, self.seed, self.decode = images, flip, seed, Decoder(decode)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Raises:
            DataError: for a file that is no image, or of another size than the annotations say.
        """
        epoch, index = key
        name = self.images.name(index)
        try:
            pixels = self.decode(self.images.content(index))
        except DAMAGED as error:
            raise DataError(f"{name}: cannot be read as an image ({error}). Fetch it again.") from error
        if tuple(pixels.shape[:2]) != self.images.size(index):
            found, said = ("x".join(map(str, reversed(size))) for size in (pixels.shape[:2], self.images.size(index)))
            raise DataError(f"{name}: {found} pixels, and its annotations are for {said}. Fetch it again.")
        image, target = pixels.permute(2, 0, 1), self.images.target(index)
        if self.flip and mix(self.seed, "flip", epoch, index) % 2:
            image, target["boxes"] = image.flip(2), mirrored(target["boxes"], width=image.shape[2])
        return image.contiguous(), target

    def __getitems__(self, keys: list[Key]) -> DetectionBatch:  # what a DataLoader calls with all of a batch's keys
        images, targets = zip(*(self[key] for key in keys), strict=True)
        return DetectionBatch(list(images), list(targets), [self.images.image_id(index) for _, index in keys])


class DetectionFeed(ResumableFeed[DetectionBatch]):
    """Batches in an order, by so many worker processes; with none, by this one."""

    def __init__(
        self, dataset: DetectionDataset, order: TrainingOrder | FixedOrder, *, workers: int = 0, pin: bool = False
    ) -> None:
        super().__init__(order)
        self.dataset = dataset
        self._loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=workers > 0,
            pin_memory=pin,
        )

    def batches(self) -> Iterator[DetectionBatch]:
        with explained_workers():
            yield from self._loader


def mirrored(boxes: Tensor, *, width: int) -> Tensor:
    """Boxes x1 y1 x2 y2 ``[n, 4]`` on the mirrored image."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def _as_it_is(batch: Any) -> Any:
    return batch
