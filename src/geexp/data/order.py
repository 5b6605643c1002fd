"""Which sample comes when: a pure function of (seed, epoch, rank, world size, position), with no state to lose."""

import hashlib
from collections.abc import Iterator

import torch

Key = tuple[int, int]  # (epoch, index): what a sample's augmentation is drawn from, beside the seed


class TrainingOrder:
    """The batches of one rank in one epoch: lists of (epoch, index).

    The k-th step of all ranks together has the same samples whatever the number of ranks, and no sample comes twice.
    What does not fill a step is left out of the epoch; another epoch's permutation leaves out others.

    Args:
        batch_size: of one rank.
        accumulate: so many batches make one step; no step is left with fewer.
        repeat: every epoch is the first one again, to learn it by heart.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        repeat: bool = False,
    ) -> None:
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.accumulate, self.repeat = accumulate, repeat
        self.share = n  # the images that this rank sees, in the course of the epochs
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Of the whole epoch, also when it is entered in the middle."""
        return self.n // (self.batch_size * self.world * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = 0 if self.repeat else self.epoch
        generator = torch.Generator().manual_seed(mix(self.seed, "order", epoch))
        mine = torch.randperm(self.n, generator=generator)[self.rank :: self.world]
        for batch in range(self.start, len(self)):
            indices = mine[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            yield [(epoch, index) for index in indices]


class FixedOrder:
    """The samples from first to last, each exactly once over all ranks; shares may differ by one sample.

    Args:
        count: only so many, evenly spread over all of them; None for all.
    """

    def __init__(self, n: int, *, batch_size: int, rank: int = 0, world: int = 1, count: int | None = None) -> None:
        self.n, self.batch_size = n, batch_size
        count = n if count is None else min(count, n)
        self.mine = [i * n // count for i in range(rank, count, world)]
        self.share = len(self.mine)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in range(self.start, len(self)):
            yield [(0, index) for index in self.mine[batch * self.batch_size : (batch + 1) * self.batch_size]]


def mix(*parts: object) -> int:
    """A 63-bit seed from any parts, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
