"""Batches as readers make them, and the worker processes of a DataLoader that call a reader."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast

from rich.filesize import decimal
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geexp.config.errors import ConfigError, DataError
from geexp.data.decode import DAMAGED
from geexp.data.order import FixedOrder, Key, TrainingOrder, mix

Order = TrainingOrder | FixedOrder
T = TypeVar("T")

_TIMEOUT = 900  # seconds to wait for a batch of worker processes
_PREFETCHED = 2  # batches that each of them keeps ready
_SHARED_MEMORY = "/dev/shm"
# The default up to Python 3.13. With that of 3.14 each worker would hold a copy of all names and take seconds to start,
# and torch would notice its death only at the timeout.
_START_METHOD = "fork" if sys.platform == "linux" else None
_OVERHEAD = 2**16  # bytes per worker process, for semaphores and for pages that are not full
_TRIES = 100  # with half of the images readable, the chance that so many tries fail is 1e-30


class Named(Protocol):
    """Images with names for messages."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read."""

    index: int
    name: str
    reason: str

    @classmethod
    def of(cls, images: Named, index: int, error: OSError | ValueError) -> "Unreadable":
        reason = getattr(error, "strerror", None) or str(error)  # str(OSError) names the file once more
        return cls(index, printable(images.name(index)), reason)


def printable(name: str) -> str:
    """File names are bytes, and not all of them are text."""
    return os.fsencode(name).decode(errors="backslashreplace")


def read_or_replace(
    read: Callable[[int], T], key: Key, images: Named, unreadable: list[Unreadable], *, seed: int, replace: bool
) -> tuple[int, T] | None:
    """The index of the image of ``key`` and what ``read`` returns for it; None if it cannot be read.

    With ``replace``, others are tried in its place: random images of the split, a function of (seed, epoch, index).

    Args:
        read: raises one of ``DAMAGED`` for an image that cannot be read.
        unreadable: a list to which the images that cannot be read are added.

    Raises:
        DataError: if none of ``_TRIES`` others can be read.
    """
    epoch, wanted = key
    for tried in range(1 + _TRIES if replace else 1):
        index = mix(seed, "replacement", epoch, wanted, tried) % len(images) if tried else wanted
        try:
            return index, read(index)
        except DAMAGED as error:
            unreadable.append(Unreadable.of(images, index, error))
    if replace:
        raise mostly_unreadable(len(images), unreadable[-1])
    return None


def mostly_unreadable(number: int, last: Unreadable) -> DataError:
    return DataError(
        f"more than half of {number} images cannot be read; the last one: {last.name} (image {last.index}): "
        f"{last.reason}. See python -m geexp.check_data"
    )


class Notes(Protocol):
    """What was unusual about reading a batch; see ``Batch``."""

    @property
    def unreadable(self) -> Sequence[Unreadable]: ...
    @property
    def fallbacks(self) -> int: ...
    @property
    def conversions(self) -> frozenset[str]: ...


@dataclass
class Batch:
    """Images, labels ``[N]`` int64, the images that could not be read, and how many fell back to Pillow.

    ``conversions``: see ``geexp.data.decode.take_conversions``.
    """

    images: Tensor
    labels: Tensor
    unreadable: list[Unreadable] = field(default_factory=list)
    fallbacks: int = 0
    conversions: frozenset[str] = frozenset()

    def pin_memory(self) -> "Batch":
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


class Reader(Protocol):
    """Keys (epoch, index) → a batch, as a DataLoader asks a data set that reads whole batches."""

    def __getitems__(self, keys: list[Key]) -> Any: ...


class Workers:
    """Batches in order, made by the worker processes of a DataLoader, which live on from epoch to epoch.

    Args:
        image_bytes: of one image of a batch.
        processes: of this machine that have such workers.

    Raises:
        ConfigError: if the shared memory of this machine is too small.
    """

    def __init__(
        self, reader: Reader, order: Order, workers: int, *, image_bytes: int, processes: int = 1, pin: bool = False
    ) -> None:
        if workers:
            at_once = min((_PREFETCHED * workers + 1) * order.batch_size, order.share)
            _require_shared_memory(processes * (at_once * image_bytes + (workers + 1) * _OVERHEAD), workers)
        self._loader: DataLoader = DataLoader(
            cast(Dataset, reader),
            batch_sampler=order,
            num_workers=workers,
            prefetch_factor=_PREFETCHED if workers else None,
            collate_fn=_unchanged,
            persistent_workers=workers > 0,
            pin_memory=pin,
            timeout=_TIMEOUT if workers else 0,
            multiprocessing_context=_START_METHOD if workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        with explained_workers(reading=self._loader.num_workers > 0):
            yield from self._loader


def _require_shared_memory(needed: int, workers: int) -> None:
    """Worker processes pass batches through shared memory. If it is full, batches get lost and training waits."""
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:  # other systems than Linux do not have it there
        return
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise ConfigError(
            f"feed.workers={workers}: the batches of the worker processes need {decimal(needed)} of shared memory, and "
            f"{_SHARED_MEMORY} has {decimal(free)} free. Use threads (feed.engine=threads, for feed=folder and pack), "
            "this process (feed.workers=0), fewer workers or a smaller optim.batch_size; or give a container more, "
            f"such as docker run --shm-size={-(-needed // 2**30)}g."
        )


@contextmanager
def explained_workers(*, reading: bool = False) -> Iterator[None]:
    """Raise a ``DataError`` for a dead worker process, which torch reports by a signal to whatever is running.

    Args:
        reading: nothing else happens within than reading from workers, so that a lost connection is one to a worker.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        about = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Not "Caught RuntimeError in DataLoader worker process 0", which is an error of the code that it runs.
        died = "DataLoader worker (pid" in about or "DataLoader timed out" in about
        lost = reading and not isinstance(error, RuntimeError) and "in DataLoader worker process" not in about
        if not died and not lost:
            raise
        raise DataError(
            f"a worker process of the feed has died or is stuck: {about} The usual cause is a lack of memory, or of "
            "shared memory (/dev/shm): try fewer feed.workers, or feed.engine=threads."
        ) from error


def _unchanged(batch: Any) -> Any:
    return batch
