"""A feed: batches of (images, labels) from a data set, in an order, for an epoch, from any position in it."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from geexp.config.errors import DataError
from geexp.config.schema import DataConfig, FeedConfig
from geexp.data.decode import Decoder
from geexp.data.images import ArrayImages, Images
from geexp.data.parallel import processors
from geexp.data.pixel_feed import PixelReader, read_with_threads
from geexp.data.reading import Batch, Notes, Order, Unreadable, Workers, mostly_unreadable
from geexp.data.reference_feed import ReferenceReader, evaluation_transform, training_transform
from geexp.data.resident_feed import ResidentImages

T = TypeVar("T")
log = logging.getLogger(__name__)


class ResumableFeed(ABC, Generic[T]):
    """Batches in an order, for Lightning. One iteration is one epoch, or the rest of one after a checkpoint.

    Its position goes into checkpoints by Lightning's protocol for stateful loaders. ``skipped`` records the images that
    could not be read, by index; ``fallbacks`` counts those that fell back to Pillow.

    Raises:
        DataError: when iterated, for an image that cannot be read (``on_error="stop"``), or if more than half of them
            cannot (``skip``).
    """

    def __init__(self, order: Order, on_error: str = "stop") -> None:
        self.sampler = self.batch_sampler = order  # the names at which Lightning calls set_epoch
        self.on_error = on_error
        self.skipped: dict[int, Unreadable] = {}
        self.fallbacks = 0
        self.logged: set[str] = set()  # conversions; feeds of one run may share it
        self._given = 0
        self._resume: dict[str, int] | None = None

    @abstractmethod
    def batches(self) -> Iterator[T]:
        """Those of the order from its ``start`` on, read when asked for: Lightning sets the epoch after ``iter``."""

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[T]:
        order, resume = self.sampler, self._resume
        self._resume = None
        # The checkpoint of a finished epoch is resumed in the next one, from its start.
        order.start = resume["batches"] if resume is not None and resume["epoch"] == order.epoch else 0
        self._given = order.start
        for batch in self.batches():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batches": self._given, "images": self.sampler.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """
        Raises:
            DataError: if the number of images has changed.
        """
        if state["images"] != self.sampler.n:
            raise DataError(
                f"the training split has {self.sampler.n} images, and had {state['images']} when the checkpoint was "
                "written, so the run cannot be resumed. Restore the images, or start over with force=true."
            )
        self._resume = state

    def note(self, batch: Notes) -> None:
        """Record and log what was unusual about a batch; see the class for the errors."""
        self.fallbacks += batch.fallbacks
        for conversion in sorted(batch.conversions - self.logged):
            log.info("%s", conversion)
        self.logged |= batch.conversions
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
                if 2 * len(self.skipped) > self.sampler.share:
                    raise mostly_unreadable(self.sampler.share, one)


class Feed(ResumableFeed[tuple[Tensor, Tensor]]):
    """Batches of (images, labels). Of evaluation, without the images that cannot be read, and never empty."""

    def __init__(self, batches: Callable[[], Iterator[Batch]], order: Order, on_error: str) -> None:
        super().__init__(order, on_error)
        self._batches = batches

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        before = self.fallbacks
        for batch in self._batches():
            self.note(batch)
            if len(batch.labels):
                yield batch.images, batch.labels
        if self.fallbacks and not before:
            log.info("%d images fell back to the Pillow decoder", self.fallbacks)


def make_feed(
    images: Images,
    data: DataConfig,
    feed: FeedConfig,
    *,
    train: bool,
    order: Order,
    seed: int,
    device: torch.device,
    processes: int = 1,
) -> Feed:
    """The feed that a configuration names.

    Args:
        device: of the training; a resident feed keeps its images there.
        processes: of this machine, which share its processors.

    Raises:
        ConfigError: if worker processes need more shared memory than there is.
    """
    augmentation = data.augmentation if train else None
    if feed.name == "resident":
        assert isinstance(images, ArrayImages)
        resident = ResidentImages(images, augmentation, channels=data.channels, seed=seed, device=device)
        return Feed(lambda: map(resident.__getitems__, order), order, feed.on_error)
    workers = max(1, processors() // processes) if feed.workers is None else feed.workers
    pin = device.type == "cuda"
    # Only a constant number of images keeps batch normalisation and the mean over ranks as they would be.
    replace = train and feed.on_error == "skip"
    reader: PixelReader | ReferenceReader
    if feed.name == "reference":
        transform = training_transform(data) if train else evaluation_transform(data)
        reader = ReferenceReader(images, transform, seed, replace=replace)
    else:
        reader = PixelReader(images, Decoder(feed.decode), data, augmentation, seed, replace=replace)
    if not workers:
        return Feed(lambda: map(reader.__getitems__, order), order, feed.on_error)
    if isinstance(reader, PixelReader) and feed.engine != "workers":
        return Feed(lambda: read_with_threads(reader, order, workers, pin=pin), order, feed.on_error)
    image_bytes = data.channels * data.image_size**2 * (4 if feed.name == "reference" else 1)  # float32 or uint8
    made = Workers(reader, order, workers, image_bytes=image_bytes, processes=processes, pin=pin)
    return Feed(made.__iter__, order, feed.on_error)


def normalised(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """``uint8 [N, C, H, W]`` → float32 in channels_last memory, by the steps of ``ToTensor`` and ``Normalize``."""
    n, c, h, w = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(n * h, w * c).to(torch.float32)  # long rows: channels alone are short
    mean_row, std_row = (_row(tuple(values), w, images.device) for values in (mean, std))
    return rows.div_(255).sub_(mean_row).div_(std_row).view(n, h, w, c).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    return torch.tensor(values).repeat(width).to(device)
