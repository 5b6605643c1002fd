"""Feeds that go on where a checkpoint was taken, whatever a batch of theirs is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

from geexp.config.errors import DataError
from geexp.data.order import FixedOrder, TrainingOrder

Batch = TypeVar("Batch")


class ResumableFeed(ABC, Generic[Batch]):
    """What Lightning iterates over: batches in an order. One iteration is one epoch, or what is left of it after a
    checkpoint.

    Its position goes into checkpoints by Lightning's protocol for stateful loaders, ``state_dict`` and
    ``load_state_dict``.
    """

    def __init__(self, order: TrainingOrder | FixedOrder) -> None:
        self.sampler = self.batch_sampler = order  # the names by which Lightning finds what to tell the epoch
        self._given = 0
        self._resume: dict[str, int] | None = None

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Those of the order from its ``start`` on. Nothing may be read before the first is asked for."""

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
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
            DataError: if the split has another number of images than then.
        """
        if state["images"] != self.sampler.n:
            raise DataError(
                f"the training split has {self.sampler.n} images, and had {state['images']} when the checkpoint was "
                "written: the run cannot go on as it was begun. Bring the images back, or start over with force=true."
            )
        self._resume = state
