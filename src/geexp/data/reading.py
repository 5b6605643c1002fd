"""Batches as readers make them, and the worker processes of a DataLoader that call a reader."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geexp.config.errors import DataError
from geexp.data.images import Images
from geexp.data.order import FixedOrder, Key, TrainingOrder

Order = TrainingOrder | FixedOrder

_TIMEOUT = 900  # seconds to wait for a batch of worker processes
# The default up to Python 3.13. With that of 3.14 each worker would hold a copy of all names and take seconds to start,
# and torch would notice its death only at the timeout.
_START_METHOD = "fork" if sys.platform == "linux" else None


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read."""

    index: int
    name: str
    reason: str

    @classmethod
    def of(cls, images: Images, index: int, error: OSError | ValueError) -> "Unreadable":
        reason = getattr(error, "strerror", None) or str(error)  # str(OSError) names the file once more
        return cls(index, printable(images.name(index)), reason)


def printable(name: str) -> str:
    """File names are bytes, and not all of them are text."""
    return os.fsencode(name).decode(errors="backslashreplace")


@dataclass
class Batch:
    """Images, labels ``[N]`` int64, the images missing from it, and how many fell back to Pillow."""

    images: Tensor
    labels: Tensor
    unreadable: list[Unreadable] = field(default_factory=list)
    fallbacks: int = 0

    def pin_memory(self) -> "Batch":
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.unreadable, self.fallbacks)


class Reader(Protocol):
    """Keys (epoch, index) → a batch, as a DataLoader asks a data set that reads whole batches."""

    def __getitems__(self, keys: list[Key]) -> Any: ...


class Workers:
    """Batches in order, made by the worker processes of a DataLoader, which live on from epoch to epoch."""

    def __init__(self, reader: Reader, order: Order, workers: int, *, pin: bool = False) -> None:
        self._loader: DataLoader = DataLoader(
            cast(Dataset, reader),
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_unchanged,
            persistent_workers=workers > 0,
            pin_memory=pin,
            timeout=_TIMEOUT if workers else 0,
            multiprocessing_context=_START_METHOD if workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        with explained_workers():
            yield from self._loader


@contextmanager
def explained_workers() -> Iterator[None]:
    """Raise a ``DataError`` for a dead worker process, which torch reports by a signal to whatever is running."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        about = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Not "Caught RuntimeError in DataLoader worker process 0", which is an error of the code that it runs.
        died = "DataLoader worker (pid" in about or "DataLoader timed out" in about
        if isinstance(error, RuntimeError) and not died:
            raise
        raise DataError(
            f"a worker process of the feed has died or is stuck: {about} The usual cause is a lack of memory, or of "
            "shared memory (/dev/shm): try fewer feed.workers, or feed.engine=threads."
        ) from error


def _unchanged(batch: Any) -> Any:
    return batch
