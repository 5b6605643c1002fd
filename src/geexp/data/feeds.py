"""A feed: batches of (images, labels) from a data set, in an order, for an epoch, from any position in it."""

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from geexp.config.errors import DataError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.decode import Decoder
from geexp.data.images import ArrayImages, Images
from geexp.data.order import FixedOrder, TrainingOrder
from geexp.data.pixel_feed import PixelReader
from geexp.data.reading import (
    Batch,
    Order,
    Unreadable,
    Workers,
    processors,
    read_here,
    read_with_threads,
)
from geexp.data.reference_feed import ReferenceReader, evaluation_transform, training_transform
from geexp.data.resident_feed import ResidentImages, read_resident
from geexp.data.resumable import ResumableFeed

log = logging.getLogger(__name__)


class Feed(ResumableFeed[tuple[Tensor, Tensor]]):
    """Batches of (images, labels), and what could not be read on the way.

    Nothing is read before the first batch is asked for: Lightning makes iterators before it says which epoch it is.

    Raises:
        DataError: when iterated, for an image that cannot be read (``on_error="stop"``), or if none of a batch can.
    """

    def __init__(
        self, batches: Callable[[], Iterator[Batch]], order: TrainingOrder | FixedOrder, on_error: str
    ) -> None:
        super().__init__(order)
        self.on_error = on_error
        self.skipped: dict[int, Unreadable] = {}
        self.fallbacks = 0
        self._batches = batches

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        before = self.fallbacks
        for batch in self._batches():
            self.fallbacks += batch.fallbacks
            self._note(batch)
            yield batch.images, batch.labels
        if self.fallbacks and not before:
            log.info("to Pillow went what the chosen decoder refused: %d of the images", self.fallbacks)

    def _note(self, batch: Batch) -> None:
        for one in batch.unreadable:
            about = f"cannot read {one.name} (image {one.index}): {one.reason}"
            if self.on_error == "stop":
                raise DataError(
                    f"{about}. Replace the file, or go on without it: feed.on_error=skip. "
                    "All damaged files at once: python -m geexp.check_data"
                )
            if one.index not in self.skipped:
                log.warning("skipped: %s", about)
                self.skipped[one.index] = one
        if not len(batch.labels):
            raise DataError(
                f"not one of the {len(batch.unreadable)} images of a batch can be read, the last because of: "
                f"{batch.unreadable[-1].reason}. See python -m geexp.check_data"
            )


def make_feed(
    images: Images,
    data: DataConfig,
    feed: FeedConfig,
    *,
    train: bool,
    order: TrainingOrder | FixedOrder,
    seed: int,
    device: torch.device,
    processes: int = 1,
) -> Feed:
    """The feed that a configuration names.

    Args:
        device: where the batches are going; a resident feed keeps its images there.
        processes: how many processes of this machine share its processors, for the number of threads or workers.
    """
    augmentation = data.augmentation if train else None
    if feed.name == "resident":
        assert isinstance(images, ArrayImages)
        resident = ResidentImages(images, augmentation, channels=data.channels, seed=seed, device=device)
        return Feed(lambda: read_resident(resident, order), order, feed.on_error)
    workers = max(1, processors() // processes) if feed.workers is None else feed.workers
    reader: ReferenceReader | PixelReader
    if feed.name == "reference":
        reader = ReferenceReader(images, training_transform(data) if train else evaluation_transform(data), seed)
    else:
        reader = PixelReader(images, Decoder(feed.decode), data, augmentation, seed)
    return Feed(
        _batches(reader, order, feed.engine or "threads", workers, pin=device.type == "cuda"), order, feed.on_error
    )


def _batches(
    reader: ReferenceReader | PixelReader, order: Order, engine: str, workers: int, *, pin: bool
) -> Callable[[], Iterator[Batch]]:
    if not workers:
        return lambda: read_here(reader, order)
    if engine == "threads" and isinstance(reader, PixelReader):
        return lambda: read_with_threads(reader, order, workers, pin=pin)
    processes = Workers(reader, order, workers, pin=pin)
    return lambda: iter(processes)


def normalised(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """``uint8 [N, C, H, W]`` → float32 in channels_last memory, by the steps of ``ToTensor`` and ``Normalize``."""
    n, c, h, w = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(n * h, w * c).to(torch.float32)  # long rows: channels alone are short
    mean_row, std_row = (_row(tuple(values), w, images.device) for values in (mean, std))
    return rows.div_(255).sub_(mean_row).div_(std_row).view(n, h, w, c).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    return torch.tensor(values).repeat(width).to(device)
