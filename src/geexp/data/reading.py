"""Reading whole batches: by threads of this process, or by processes of a DataLoader; the same batches either way."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geexp.config.errors import DataError
from geexp.data.images import Images
from geexp.data.order import FixedOrder, Key, TrainingOrder


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read."""

    index: int
    name: str
    reason: str

    @classmethod
    def of(cls, images: Images, index: int, error: OSError | ValueError) -> "Unreadable":
        reason = getattr(error, "strerror", None) or str(error)  # str(OSError) names the file once more
        name = os.fsencode(images.name(index)).decode(errors="backslashreplace")  # not every name is text
        return cls(index, name, reason)


@dataclass
class Batch:
    """Images, labels ``[N]`` int64, the images missing from it, and how many fell back to Pillow."""

    images: Tensor
    labels: Tensor
    unreadable: list[Unreadable] = field(default_factory=list)
    fallbacks: int = 0

    def pin_memory(self) -> "Batch":
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.unreadable, self.fallbacks)


class Reader(ABC):
    """Keys (epoch, index) → batches; also what a DataLoader takes for a data set that reads whole batches."""

    @abstractmethod
    def __getitems__(self, keys: list[Key]) -> Batch: ...


class RowReader(Reader):
    """A reader whose batches can be made by several threads, a few rows each."""

    @abstractmethod
    def new_batch(self, keys: list[Key], *, pin: bool = False) -> Batch: ...

    @abstractmethod
    def read_rows(self, batch: Batch, keys: list[Key], first: int, last: int) -> list[Unreadable]: ...

    @abstractmethod
    def finish(self, batch: Batch, unreadable: list[Unreadable], keys: list[Key]) -> Batch: ...

    def __getitems__(self, keys: list[Key]) -> Batch:
        batch = self.new_batch(keys)
        return self.finish(batch, self.read_rows(batch, keys, 0, len(keys)), keys)


Order = TrainingOrder | FixedOrder

# Rows of one task of a thread: few enough to share a batch out evenly, many enough for the overhead not to matter.
_ROWS = 8
# Batches that are made ahead of the one in use.
_AHEAD = 2
# Seconds after which a batch of worker processes is given up.
_TIMEOUT = 900


def read_here(reader: Reader, order: Order) -> Iterator[Batch]:
    for keys in order:
        yield reader.__getitems__(keys)


def read_with_threads(reader: RowReader, order: Order, threads: int, *, pin: bool = False) -> Iterator[Batch]:
    """Batches in order; ``threads`` threads share the rows of the next ones.

    Args:
        pin: in memory from which a GPU copies while it computes.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="feed") as pool:
        under_way: deque[tuple[Batch, list[Key], list[Future[list[Unreadable]]]]] = deque()

        def begin(keys: list[Key]) -> None:
            batch = reader.new_batch(keys, pin=pin)
            starts = range(0, len(keys), _ROWS)
            tasks = [pool.submit(reader.read_rows, batch, keys, s, min(s + _ROWS, len(keys))) for s in starts]
            under_way.append((batch, keys, tasks))

        def end() -> Batch:
            batch, keys, tasks = under_way.popleft()
            unreadable = [one for task in tasks for one in task.result()]
            return reader.finish(batch, unreadable, keys)

        try:
            for keys in order:
                begin(keys)
                if len(under_way) > _AHEAD:
                    yield end()
            while under_way:
                yield end()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Workers:
    """Batches in order, made by the worker processes of a DataLoader, which live on from epoch to epoch."""

    def __init__(self, reader: Reader, order: Order, workers: int, *, pin: bool = False) -> None:
        self._loader: DataLoader = DataLoader(
            cast(Dataset, reader),
            batch_sampler=order,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=workers > 0,
            pin_memory=pin,
            timeout=_TIMEOUT if workers else 0,
        )

    def __iter__(self) -> Iterator[Batch]:
        with explained_workers():
            yield from self._loader


@contextmanager
def explained_workers() -> Iterator[None]:
    """Turn what torch raises when a worker process has died, in the feed or anywhere else, into a ``DataError``.

    (torch notices by a signal, which interrupts whatever the main thread is doing.)
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        about = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Not "Caught RuntimeError in DataLoader worker process 0", which is an error of the code that it runs.
        died = "DataLoader worker (pid" in about or "DataLoader timed out" in about
        if isinstance(error, RuntimeError) and not died:
            raise
        raise DataError(
            f"a worker process of the feed has died or is stuck: {about} Often the memory was used up, or the shared "
            "memory (/dev/shm): try fewer feed.workers, or feed.engine=threads."
        ) from error


def _as_it_is(batch: Any) -> Any:
    return batch
