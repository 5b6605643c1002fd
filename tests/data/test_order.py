"""The order of samples: a pure function, the same global batches for any number of ranks."""

import itertools

import pytest

from geexp.data.order import FixedOrder, TrainingOrder


def indices(order) -> list[list[int]]:
    return [[index for _, index in batch] for batch in order]


def test_a_permutation_that_is_a_function_of_seed_and_epoch():
    order = TrainingOrder(100, batch_size=10, seed=3)
    first = list(order)
    assert sorted(index for _, index in itertools.chain(*first)) == list(range(100))
    assert {epoch for epoch, _ in itertools.chain(*first)} == {0}
    assert list(order) == first
    order.set_epoch(1)
    assert indices(order) != indices(first_order := TrainingOrder(100, batch_size=10, seed=3))
    assert indices(TrainingOrder(100, batch_size=10, seed=4)) != indices(first_order)


@pytest.mark.parametrize("start", [0, 1, 7, 9])
def test_entered_in_the_middle_it_is_the_rest_of_the_whole(start):
    order = TrainingOrder(100, batch_size=10, seed=3)
    whole = list(order)
    order.start = start
    assert list(order) == whole[start:]
    assert len(order) == 10  # Lightning counts on the whole


@pytest.mark.parametrize(("n", "world"), [(96, 2), (101, 2), (101, 3), (97, 4)])
def test_training_on_several_ranks(n, world):
    """Each sample once at most, what is left out is less than a global batch, and batch k is the same for any world."""
    per_rank = 24 // world
    ranks = [indices(TrainingOrder(n, batch_size=per_rank, seed=1, rank=r, world=world)) for r in range(world)]
    alone = indices(TrainingOrder(n, batch_size=per_rank * world, seed=1))
    assert {len(rank) for rank in ranks} == {len(alone)} == {n // 24}
    for k, batch in enumerate(alone):
        assert sorted(itertools.chain(*(rank[k] for rank in ranks))) == sorted(batch)
    seen = list(itertools.chain(*itertools.chain(*ranks)))
    assert len(set(seen)) == len(seen) > n - 24


@pytest.mark.parametrize(("n", "world", "accumulate"), [(96, 1, 2), (101, 1, 4), (101, 2, 2), (97, 3, 2), (50, 1, 3)])
def test_a_step_of_several_batches(n, world, accumulate):
    """Step k has the same samples however many batches it is made of, and none is left with fewer batches."""
    share = {"batch_size": 24 // (world * accumulate), "seed": 1, "world": world, "accumulate": accumulate}
    ranks = [indices(TrainingOrder(n, rank=rank, **share)) for rank in range(world)]
    whole = indices(TrainingOrder(n, batch_size=24, seed=1))
    for rank in range(world):
        assert len(ranks[rank]) == len(TrainingOrder(n, rank=rank, **share)) == len(whole) * accumulate
    for k, step in enumerate(whole):
        batches = [batch for rank in ranks for batch in rank[k * accumulate : (k + 1) * accumulate]]
        assert sorted(itertools.chain(*batches)) == sorted(step)


@pytest.mark.parametrize(("n", "world", "batch"), [(10, 1, 4), (2001, 2, 500), (101, 3, 11), (9, 4, 1), (2, 4, 8)])
def test_evaluation_shows_each_sample_once(n, world, batch):
    ranks = [FixedOrder(n, batch_size=batch, rank=r, world=world) for r in range(world)]
    batches = [indices(rank) for rank in ranks]
    assert sorted(itertools.chain(*itertools.chain(*batches))) == list(range(n))
    for order, own in zip(ranks, batches, strict=True):
        assert len(own) == len(order)
        assert all(0 < len(one) <= batch for one in own)


def test_learnt_by_heart_every_epoch_is_the_first():
    order = TrainingOrder(100, batch_size=10, seed=3, repeat=True)
    first = list(order)
    order.set_epoch(1)
    assert list(order) == first == list(TrainingOrder(100, batch_size=10, seed=3))
