"""What follows from a configuration by arithmetic: rates and batches. Lengths are tested with the schedules."""

from dataclasses import replace
from functools import cache

import pytest

from geexp.config.errors import ConfigError
from geexp.config.protocol import base_rate, batchnorm_batch, device_batch, share_of_batch
from geexp.config.ranks import restarted
from geexp.config.schema import OptimConfig, TrainConfig
from geexp.runs.identity import effective_schedule, identity
from geexp.runs.job import make_job
from tests.support.configuration import train_config


@cache
def config(*overrides: str) -> TrainConfig:
    return train_config(*overrides)


def test_the_rate_is_scaled_only_when_asked():
    assert base_rate(OptimConfig(batch_size=64)) == 0.1
    assert base_rate(OptimConfig(batch_size=64, lr_for_batch=256)) == 0.025
    for name in ("paper", "cifar", "wrn"):
        optim = replace(config(f"optim={name}").optim, batch_size=64)
        assert (optim.lr_for_batch, base_rate(optim)) == (None, 0.1)
    for batch in range(2, 513):  # to its own batch a rate is scaled without a rounding error
        assert base_rate(OptimConfig(batch_size=batch, lr_for_batch=batch)) == 0.1


def test_a_run_is_named_by_the_rate_and_not_by_how_it_was_given():
    def folder(**optim) -> str:
        paper = config("optim=paper")
        return make_job(replace(paper, optim=replace(paper.optim, **optim))).slug

    assert folder(batch_size=1024, lr_for_batch=256) == folder(batch_size=1024, lr=0.4)
    assert folder(batch_size=1024, lr_for_batch=256) != folder(batch_size=1024)
    assert folder(batch_size=96, lr_for_batch=96) == folder(batch_size=96)


def test_a_run_is_named_by_its_lengths_and_not_by_how_they_were_given():
    stretched = config("schedule=fixed100", "schedule.stretch=0.1")
    written = config("schedule=fixed100", "schedule.epochs=10", "schedule.milestones=[3,6,9]")
    assert identity(stretched)["schedule"] == {
        "name": "fixed100", "kind": "steps", "epochs": 10, "warmup": 0.0, "milestones": [3, 6, 9], "factor": 0.1,
    }  # fmt: skip
    assert make_job(stretched).slug == make_job(written).slug
    assert make_job(stretched).slug != make_job(config("schedule=fixed100")).slug


@pytest.mark.parametrize(
    ("schedule", "without_effect", "with_effect"),
    [
        (
            "fixed100",
            {"patience": 3, "monitor": "train/loss", "threshold": 0, "reductions": 1, "warmup_factor": 0.5},
            {"factor": 0.2},
        ),
        ("demo", {"factor": 0.5, "patience": 3, "reductions": 1}, {"warmup_factor": 0.5, "warmup": 1, "epochs": 4}),
        (
            "plateau",
            {"warmup_factor": 0.5},
            {"patience": 3, "monitor": "train/loss", "threshold": 0, "reductions": 2, "factor": 0.5, "epochs": 400},
        ),
        ("preact_cifar", {"patience": 3}, {"warmup_factor": 0.5, "warmup": 0, "iterations": 32_000, "milestones": [1]}),
    ],
)
def test_a_run_is_named_by_what_has_an_effect_on_its_schedule(schedule, without_effect, with_effect):
    ours = config(f"schedule={schedule}").schedule
    assert effective_schedule(replace(ours, **without_effect)) == effective_schedule(ours)
    for key, value in with_effect.items():
        assert effective_schedule(replace(ours, **{key: value})) != effective_schedule(ours)


def with_trainer(**settings) -> TrainConfig:
    paper = config("optim=paper")
    return replace(paper, trainer=replace(paper.trainer, **settings))


def test_the_batch_is_that_of_all_devices_and_of_all_that_make_a_step():
    assert device_batch(with_trainer()) == 256
    assert device_batch(with_trainer(devices=8)) == 32
    assert device_batch(with_trainer(devices=4, nodes=2, accumulate=2)) == 16
    assert batchnorm_batch(with_trainer(devices=4, nodes=2, accumulate=2)) == 16
    assert batchnorm_batch(with_trainer(devices=4, nodes=2, accumulate=2, sync_batchnorm=True)) == 128


@pytest.mark.parametrize(
    ("batch", "devices", "accumulate", "parts"),
    [
        (256, 3, 1, ["optim.batch_size=256", "3 devices", "The nearest that is: 255"]),
        (100, 8, 2, ["8 devices with trainer.accumulate=2", "The nearest that is: 96"]),
        (2, 4, 1, ["The nearest that is: 4"]),
        (255, 1, 2, ["1 device with"]),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(batch, devices, accumulate, parts):
    with pytest.raises(ConfigError) as refused:
        share_of_batch(batch, devices, accumulate)
    for part in parts:
        assert part in str(refused.value)


def test_how_many_batches_make_a_step_is_part_of_the_run():
    """Positions in an epoch are counted in batches, and BN's averages move once for each."""
    one = config("optim.batch_size=64", "trainer.devices=2")
    two = config("optim.batch_size=64", "trainer.accumulate=2")
    assert batchnorm_batch(one) == batchnorm_batch(two) == 32
    assert identity(one) != identity(two)


@pytest.mark.parametrize("counter", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_command_given_again_by_a_cluster_goes_on(counter, monkeypatch):
    for count, again in (("", False), ("0", False), ("2", True)):
        monkeypatch.setenv(counter, count)
        assert restarted() == again
