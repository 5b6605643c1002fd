"""Every schedule's learning rate over its whole length, against numbers written out from the definitions."""

import json
import math
import random
import runpy
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from geexp.config.checks import check_schedule
from geexp.config.errors import ConfigError, DivergedError
from geexp.config.protocol import base_rate, planned_epochs, stretched
from geexp.config.schema import ScheduleConfig, TrainConfig
from geexp.registry import config_directory
from geexp.training.schedules import LearningRate, Plateau, lr_factor, require_schedule
from tests.support.configuration import train_config

# Iterations in an epoch: 1,281,167 images in batches of 256, the last one not full; 50,000 in batches of 128.
IMAGENET, CIFAR = 5005, 391

# schedule, optim, unit, length, steps in an epoch, (from, to, learning rate) in the unit; ``to`` is not included
PIECES = [
    ("fixed100", "paper", "epochs", 100, IMAGENET, [(0, 30, 0.1), (30, 60, 0.01), (60, 90, 0.001), (90, 100, 0.0001)]),
    (
        "fixed270",
        "paper",
        "epochs",
        270,
        IMAGENET,
        [(0, 125, 0.1), (125, 200, 0.01), (200, 250, 0.001), (250, 270, 0.0001)],
    ),
    ("wrn_cifar", "wrn", "epochs", 200, CIFAR, [(0, 60, 0.1), (60, 120, 0.02), (120, 160, 0.004), (160, 200, 0.0008)]),
    (
        "preact_cifar", "cifar", "iterations", 64_000, CIFAR,
        [(0, 400, 0.01), (400, 32_000, 0.1), (32_000, 48_000, 0.01), (48_000, 64_000, 0.001)],
    ),
    (  # 82,081 images with boxes in batches of 8
        "coco_faster_rcnn", "coco", "iterations", 320_000, 10_260, [(0, 240_000, 0.001), (240_000, 320_000, 0.0001)],
    ),
]  # fmt: skip
OTHERS = {"demo", "detection_demo", "plateau", "shufflenet400"}


@cache
def config(*overrides: str) -> TrainConfig:
    return train_config("model=resnet20", *overrides)


def schedule(name: str, **changes) -> ScheduleConfig:
    """An option of the group with some settings changed, by the rules."""
    changed = replace(config(f"schedule={name}").schedule, **changes)
    check_schedule(changed)
    return changed


def equal(rate: float, expected: float) -> bool:
    return math.isclose(rate, expected, rel_tol=1e-12)


def test_no_schedule_is_forgotten():
    options = {path.stem for path in Path(config_directory()).glob("schedule/*.yaml")}
    assert options == {case[0] for case in PIECES} | OTHERS


@pytest.mark.parametrize(("name", "optim", "unit", "length", "steps", "pieces"), PIECES, ids=[c[0] for c in PIECES])
def test_every_step_of_a_schedule_in_pieces(name, optim, unit, length, steps, pieces):
    c = config(f"schedule={name}", f"optim={optim}")
    assert getattr(c.schedule, unit) == length == pieces[-1][1]
    assert planned_epochs(c) == (length if unit == "epochs" else None)
    rate, base, scale = LearningRate(c.schedule), base_rate(c.optim), steps if unit == "epochs" else 1
    for start, end, expected in pieces:
        assert all(equal(base * rate.factor(step, steps), expected) for step in range(start * scale, end * scale))
    assert not rate.over(length * scale - 1)
    assert rate.over(length * scale) == (unit == "iterations")  # epochs are counted by the trainer


def test_every_step_of_the_demo():
    """Half an epoch of warm-up, which rises linearly; then half a wave of the cosine to the end of the fifth."""
    c, base = config("schedule=demo", "optim=demo"), 0.025
    assert planned_epochs(c) == 5
    rates = [base_rate(c.optim) * LearningRate(c.schedule).factor(step, 20) for step in range(101)]
    assert rates[:10] == pytest.approx([base * k / 10 for k in range(10)])
    assert rates[10:] == pytest.approx([base * math.cos(math.pi / 2 * k / 90) ** 2 for k in range(91)])
    written_out = {0: 0.0, 5: 0.5, 10: 1.0, 40: 0.75, 55: 0.5, 70: 0.25, 100: 0.0}
    assert {step: rates[step] for step in written_out} == pytest.approx({s: base * f for s, f in written_out.items()})
    assert lr_factor(c.schedule, 5.5) == lr_factor(c.schedule, 10) == 0  # it does not rise again


@pytest.mark.parametrize(("stretch", "warmup"), [(1, 400), (0.5, 200), (0.07, 28), (0.0175, 7), (0.57, 228)])
def test_a_stretched_warmup_is_exact(stretch, warmup):
    rate = LearningRate(schedule("preact_cifar", stretch=stretch))
    assert [rate.factor(step, CIFAR) for step in (0, warmup - 1, warmup)] == [0.1, 0.1, 1]


def test_a_warmup_in_front_of_a_plateau_and_of_milestones():
    plateau = ScheduleConfig(name="x", kind="plateau", epochs=10, warmup=2)
    assert [lr_factor(plateau, position, 1) for position in (0, 1, 2, 3)] == pytest.approx([0, 0.5, 0.1, 0.1])
    steps = ScheduleConfig(name="x", kind="steps", epochs=10, warmup=2, warmup_factor=0.3, milestones=[1, 4])
    assert [lr_factor(steps, position) for position in (0, 1.9, 2, 4)] == pytest.approx([0.3, 0.3, 0.1, 0.01])


@pytest.mark.slow
def test_the_picture_shows_all_schedules(tmp_path, monkeypatch):
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/plot_schedules.py"))
    shown = {panel.schedule for panel in (*script["ABOVE"], *script["BELOW"])}
    assert shown == {case[0] for case in PIECES} | OTHERS
    path = tmp_path / "new" / "schedules.png"
    monkeypatch.setattr(sys, "argv", ["plot_schedules", str(path)])
    script["main"]()
    assert path.stat().st_size > 50_000


def driven(c: TrainConfig, losses: list[float], steps: int = 3) -> tuple[list[float], LearningRate]:
    """The learning rate of every epoch, the same for all its steps, with these losses."""
    rate, rates, limit = LearningRate(c.schedule), [], planned_epochs(c)
    for epoch, loss in enumerate(losses[:limit]):
        of_epoch = {base_rate(c.optim) * rate.factor(epoch * steps + step, steps) for step in range(steps)}
        assert len(of_epoch) == 1
        rates += of_epoch
        rate.observe({"val/loss": loss})
        if rate.over((epoch + 1) * steps):
            break
    return rates, rate


FALLING = [5 * 0.99**epoch for epoch in range(400)]


def in_pieces(pieces: list[tuple[int, int, float]]) -> list[float]:
    return [rate for start, end, rate in pieces for _ in range(start, end)]


@pytest.mark.parametrize("name", ["plateau", "shufflenet400"])
def test_plateau_lowers_three_times_and_ends_at_the_fourth(name):
    """The loss falls for 40 epochs and then stands still: an eleventh epoch without a better loss is a plateau."""
    rates, rate = driven(config(f"schedule={name}", "optim=paper"), FALLING[:40] + [FALLING[39]] * 360)
    pieces = [(0, 51, 0.1), (51, 62, 0.01), (62, 73, 0.001), (73, 84, 0.0001)]
    assert rates == pytest.approx(in_pieces(pieces), rel=1e-12)
    assert rate.plateau.finished


@pytest.mark.parametrize(("name", "epochs"), [("plateau", 300), ("shufflenet400", 400)])
def test_plateau_without_one_ends_at_its_limit(name, epochs):
    rates, rate = driven(config(f"schedule={name}", "optim=paper"), FALLING)
    assert rates == [0.1] * epochs
    assert not rate.plateau.finished


@pytest.mark.parametrize("name", ["plateau", "shufflenet400"])
def test_what_the_paper_leaves_open_is_in_the_configuration(name):
    ours = schedule(name)
    settings = (ours.monitor, ours.patience, ours.threshold, ours.factor, ours.reductions)
    assert settings == ("val/loss", 10, 1e-4, 0.1, 3)
    own = LearningRate(schedule(name, monitor="train/top1_error", patience=0))
    for value in (50.0, 50.0):
        own.observe({"train/top1_error": value, "val/loss": math.nan})
    assert own.plateau.reductions == 1


def test_a_plateau_after_the_last_reduction_ends_training():
    plateau, states = Plateau(patience=0, threshold=0.0, reductions=1), []
    for value in (1, 1, 1):
        plateau.observe(value)
        states.append((plateau.reductions, plateau.finished))
    assert states == [(0, False), (1, False), (1, True)]


@pytest.mark.parametrize("cut", [1, 61, 83])
def test_a_plateau_goes_on_from_its_state(cut):
    c = config("schedule=plateau", "optim=paper")
    losses = [loss + 0.3 * random.Random(epoch).random() for epoch, loss in enumerate(FALLING[:60])] + [2.9] * 100
    whole, rate = driven(c, losses)
    first = LearningRate(c.schedule)
    for loss in losses[:cut]:
        first.observe({"val/loss": loss})
    second = LearningRate(c.schedule)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for loss in losses[cut : len(whole)]:
        second.observe({"val/loss": loss})
    assert second.state_dict() == rate.state_dict()
    assert rate.plateau.finished


def series(seed: int) -> tuple[list[float], dict[str, float]]:
    """A loss that falls, creeps, repeats itself and jumps, with settings of a plateau."""
    draw = random.Random(seed)
    value, values = draw.uniform(0.5, 10), []
    for _ in range(250):
        move = draw.choice(["fall", "creep", "same", "noise", "threshold"])
        if move == "fall":
            value *= draw.uniform(0.9, 1)
        elif move == "creep":
            value *= 1 - draw.uniform(0, 2e-4)
        elif move == "threshold":
            value = min([*values, value]) * (1 - 1e-4)
        values.append(value if move != "noise" else round(value * draw.uniform(0.98, 1.2), 2))
    return values, {"patience": draw.choice([0, 1, 2, 5, 10]), "threshold": draw.choice([0.0, 1e-4, 1e-2])}


def test_plateau_agrees_with_torch():
    finished = 0
    for seed in range(100):
        values, settings = series(seed)
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="min", factor=0.1, threshold_mode="rel", cooldown=0, min_lr=0, eps=0, **settings
        )
        ours = Plateau(**settings, reductions=3)
        for value in values:
            ours.observe(value)
            theirs.step(value)
            lr = optimizer.param_groups[0]["lr"]
            if ours.finished:
                assert equal(lr, 1e-4)  # torch's fourth reduction
                finished += 1
                break
            assert equal(0.1**ours.reductions, lr)
    assert 10 < finished < 100  # both ends occur


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value):
    plateau = Plateau(patience=0, threshold=0.0, reductions=3)
    plateau.observe(1.0)
    before = plateau.state_dict()
    with pytest.raises(DivergedError, match=f"is {value}: the run has diverged"):
        plateau.observe(value)
    assert plateau.state_dict() == before


@pytest.mark.parametrize(
    ("name", "stretch", "lengths"),
    [
        ("fixed100", 1, {"epochs": 100, "milestones": [30, 60, 90], "patience": 10, "warmup": 0}),
        ("fixed100", 0.1, {"epochs": 10, "milestones": [3, 6, 9]}),
        ("fixed100", 2, {"epochs": 200, "milestones": [60, 120, 180], "patience": 20}),
        ("fixed100", 1e-9, {"epochs": 1, "milestones": [1, 1, 1]}),
        ("wrn_cifar", 0.01, {"epochs": 2, "milestones": [1, 1, 2]}),
        ("preact_cifar", 0.01, {"iterations": 640, "epochs": None, "warmup": 4, "milestones": [320, 480]}),
        ("plateau", 0.01, {"epochs": 3, "patience": 1, "reductions": 3, "threshold": 1e-4}),
        ("demo", 0.6, {"epochs": 3, "warmup": 0.3}),
    ],
)
def test_stretched_lengths(name, stretch, lengths):
    long = stretched(schedule(name, stretch=stretch))
    assert {key: getattr(long, key) for key in lengths} == lengths
    assert long.stretch == 1
    assert stretched(long) == long


def test_milestones_that_fell_together_count_each():
    """In one epoch instead of a hundred nothing is left to be lowered in; in two of 200 the first two coincide."""
    rate = LearningRate(schedule("wrn_cifar", stretch=0.01))
    assert [rate.factor(step, 10) for step in (0, 9, 10, 19)] == pytest.approx([1, 1, 0.04, 0.04])


def test_a_stretched_plateau_has_a_stretched_patience():
    """Patience 10 becomes 1: the second epoch that is not better is a plateau, and 300 epochs become 30."""
    short = config("schedule=plateau", "schedule.stretch=0.1", "optim=paper")
    rates, rate = driven(short, [1.0] * 100)
    assert rates == pytest.approx(in_pieces([(0, 3, 0.1), (3, 5, 0.01), (5, 7, 0.001), (7, 9, 0.0001)]))
    assert rate.plateau.finished
    assert len(driven(short, FALLING)[0]) == 30


def test_a_stretch_that_leaves_only_the_warmup_is_refused():
    """Lengths are rounded to whole ones: 4 of 5 epochs stretched by a half would be 2 of 2."""
    for stretch in (0.1, 0.125, 0.375, 0.9, 1.1):
        rate, length = LearningRate(schedule("demo", warmup=4, stretch=stretch)), round(5 * stretch) or 1
        assert max(rate.factor(step, 1000) for step in range(length * 1000 + 1)) == 1
    with pytest.raises(ConfigError, match=r"schedule.stretch=0.5: shortens the schedule to schedule.epochs=2, "):
        schedule("demo", warmup=4, stretch=0.5)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match=r"schedule\.kind=polynomial"):
        lr_factor(replace(config("schedule=demo").schedule, kind="polynomial"), 1.0)


def triangle(progress: float, peak: float) -> float:
    return 1 - abs(progress - peak)


def words(progress: float) -> str:
    return f"about {progress}"


def of_a_user(target: str, **changes) -> ScheduleConfig:
    return ScheduleConfig(**{"name": "mine", "_target_": target, "epochs": 10} | changes)


def test_a_function_of_the_users():
    """It gets the share of the whole schedule that is done; the warm-up is applied before it."""
    mine = of_a_user(f"{__name__}.triangle", arguments={"peak": 0.5}, warmup=1.0)
    require_schedule(mine)
    factors = [lr_factor(mine, position) for position in (0, 0.5, 1, 5, 10, 12)]
    assert factors == pytest.approx([0, 0.5, 0.6, 1, 0.5, 0.5])
    by_step = LearningRate(replace(mine, epochs=None, iterations=200, warmup=0, stretch=0.5))
    assert [by_step.factor(step, 7) for step in (0, 50, 75)] == pytest.approx([0.5, 1, 0.75])


@pytest.mark.parametrize(
    ("target", "arguments", "named"),
    [
        ("nowhere.triangle", {"peak": 0.5}, "nowhere"),
        (f"{__name__}.triangle", {}, "peak"),
        (f"{__name__}.triangle", {"peak": 0.5, "width": 1}, "width"),
        (f"{__name__}.triangle", {"peak": 1.5}, "-0.5"),  # below zero at the start
        (f"{__name__}.words", {}, "about 0.0"),
    ],
)
def test_a_wrong_function_of_the_users_is_refused_before_training(target, arguments, named):
    with pytest.raises(ConfigError, match=r"^schedule\._target_=") as error:
        require_schedule(of_a_user(target, arguments=arguments))
    assert named in str(error.value)
    assert "\n" not in str(error.value)
