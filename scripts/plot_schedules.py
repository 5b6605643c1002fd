"""Plot the learning rate of every schedule over its whole length in one figure.

    python scripts/plot_schedules.py [outputs/published/schedules.png]

Configurations come from ``conf/schedule``, the code from the trainer. Plateau schedules need losses, which are scripted
and plotted below the resulting learning rate. No network is trained.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from geexp.analysis.drawing import variant_style
from geexp.config.compose import composed_training
from geexp.config.protocol import base_rate, planned_epochs
from geexp.config.schema import TrainConfig
from geexp.training.schedules import LearningRate

DEFAULT = Path(__file__).parents[1] / "outputs/published/schedules.png"
RATE, LOSS, QUIET = variant_style("theta")["color"], variant_style("theta_plus")["color"], "#777777"
PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # background of labels
LOWEST = 2.5e-5  # lowest plotted learning rate
STEPS = 100  # plotted steps per epoch


@dataclass(frozen=True)
class Panel:
    """A schedule with its optimiser settings, and its use in the paper as the title."""

    schedule: str
    optim: str
    title: str
    length: int
    ticks: tuple[int, ...]
    note: str = ""

    @property
    def config(self) -> TrainConfig:
        return composed_training(f"schedule={self.schedule}", f"optim={self.optim}")


# First the plateau schedules, with a panel for the loss, then the others.
ABOVE = [
    Panel(
        "plateau", "paper", "ImageNet: divided by 10 each time the loss plateaus, three times", 300, (0, 100, 200, 300)
    ),
    Panel(
        "shufflenet400", "paper", "ShuffleNet (Table 4): the same, for about 400 epochs", 400, (0, 100, 200, 300, 400)
    ),
]
BELOW = [
    Panel("fixed100", "paper", "Fixed 100 epochs (Figures 4 and 6)", 100, (0, 30, 60, 90, 100)),
    Panel("fixed270", "paper", "Fixed 270 epochs (SENet)", 270, (0, 125, 200, 270)),
    Panel(
        "preact_cifar",
        "cifar",
        "CIFAR, ResNet-110 and -164 (Table 5)",
        64_000,
        (0, 32_000, 48_000, 64_000),
        "0.01 for the first 400 iterations",
    ),
    Panel("wrn_cifar", "wrn", "CIFAR, WRN-16-8 (Table 5)", 200, (0, 60, 120, 160, 200)),
    Panel(
        "demo",
        "demo",
        "The demo on the embedded data",
        5,
        (0, 1, 2, 3, 4, 5),
        "warm-up over half an epoch,\nthen a cosine to zero",
    ),
    Panel("coco_faster_rcnn", "coco", "Faster R-CNN on COCO", 320_000, (0, 240_000, 320_000)),
    Panel(
        "detection_demo",
        "detection_demo",
        "The small detector",
        12,
        (0, 4, 8, 12),
        "warm-up over an epoch,\nthen a cosine to zero",
    ),
]
# The scripted loss: rate of decrease, noise, and the limit after each number of reductions.
SCRIPTS = {
    "plateau": (0.1, 0.004, (2.6, 1.55, 1.25, 1.18)),
    "shufflenet400": (0.04, 0.002, (2.9, 1.9, 1.62, 1.55)),
}


@dataclass
class Curve:
    """The learning rate at every position, in epochs or iterations; for plateau schedules also the losses."""

    positions: list[float]
    rates: list[float]
    losses: list[float]
    lowered: list[int]
    end: int


def curve(config: TrainConfig) -> Curve:
    """Simulate the trainer: the learning rate of every step, the loss of every epoch, and the end of training."""
    schedule, rate, base = config.schedule, LearningRate(config.schedule), base_rate(config.optim)
    if schedule.iterations is not None:
        rates = [base * rate.factor(step, 1) for step in range(schedule.iterations)]
        return Curve([float(step) for step in range(len(rates))], rates, [], [], len(rates))
    drawn, draw, epochs, loss = Curve([], [], [], [], 0), random.Random(2018), planned_epochs(config), 6.9
    assert epochs is not None  # it does not count iterations
    while drawn.end < epochs and not rate.over(drawn.end * STEPS):
        steps = range(drawn.end * STEPS, (drawn.end + 1) * STEPS)
        drawn.positions += [step / STEPS for step in steps]
        drawn.rates += [base * rate.factor(step, STEPS) for step in steps]
        drawn.end += 1
        if schedule.kind == "plateau":
            speed, tremble, levels = SCRIPTS[schedule.name]
            loss += speed * (levels[rate.plateau.reductions] - loss)
            drawn.losses.append(loss * (1 + draw.gauss(0, tremble)))
            before = rate.plateau.reductions
            rate.observe({schedule.monitor: drawn.losses[-1]})
            drawn.lowered += [drawn.end] * (rate.plateau.reductions - before)
    return drawn


def draw_rate(axis: Axes, panel: Panel, drawn: Curve, unit: str) -> None:
    """Plot the learning rate over the whole length, with a label for every constant piece."""
    rates = [rate if rate > 0 else float("nan") for rate in drawn.rates]  # zero cannot be shown on a log axis
    axis.plot(drawn.positions, rates, color=RATE, linewidth=1.8, drawstyle="steps-post", solid_joinstyle="miter")
    if rates[-1] > LOWEST:
        axis.plot(drawn.end, rates[-1], "o", color=RATE, markersize=4)
    for start, end, rate in pieces(drawn):
        share = (end - start) / panel.length
        if share > 0.12:
            axis.annotate(f"{rate:g}", ((start + end) / 2, rate), (0, 4), textcoords="offset points", ha="center")
        elif share > 0.02:  # too short for a label beside the preceding drop
            axis.annotate(
                f"{rate:g}", (end, rate), (2, -5), textcoords="offset points", ha="right", va="top", bbox=PLAIN
            )
    axis.set_yscale("log")
    axis.set_ylim(LOWEST, 0.4)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlim(-0.02 * panel.length, 1.03 * panel.length)
    axis.set_xticks(panel.ticks, [f"{tick:,}" for tick in panel.ticks])
    axis.set_xlabel(unit)
    axis.grid(alpha=0.3)
    axis.set_title(f"{panel.title}\nschedule={panel.schedule}")
    axis.text(0.04, 0.05, panel.note, transform=axis.transAxes, color=QUIET)


def pieces(drawn: Curve) -> list[tuple[float, float, float]]:
    """(from, to, rate) of the intervals with a constant learning rate."""
    starts = [i for i, rate in enumerate(drawn.rates) if i == 0 or rate != drawn.rates[i - 1]]
    ends = [drawn.positions[i] for i in starts[1:]] + [float(drawn.end)]
    return [(drawn.positions[i], end, drawn.rates[i]) for i, end in zip(starts, ends, strict=True)]


def draw_loss(axis: Axes, above: Axes, panel: Panel, drawn: Curve) -> None:
    """Plot the scripted loss below the learning rate, with the plateaus marked in both."""
    axis.plot(range(1, drawn.end + 1), drawn.losses, color=LOSS, linewidth=1.2)
    plateaus = [*drawn.lowered, *([drawn.end] if drawn.end < panel.length else [])]
    for both in (axis, above):
        for epoch in plateaus:
            both.axvline(epoch, color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
    for number, epoch in enumerate(plateaus, 1):
        at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right", "va": "top"}
        axis.annotate(f"plateau {number}", (epoch, 0.94), (-3, 0), color=QUIET, **at)
    how = f"at plateau {len(plateaus)}" if drawn.end < panel.length else "at its limit"
    ending = f"ends {how}, after {drawn.end} epochs"
    above.text(0.985, 0.9, ending, transform=above.transAxes, color=QUIET, ha="right", bbox=PLAIN)
    axis.set_ylim(0, 7.4)
    axis.set_xlabel("epochs")
    axis.set_ylabel("validation loss\n(scripted)")
    axis.grid(alpha=0.3)


def plot(path: Path) -> None:
    style: dict[str, Any] = {"font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8}
    with plt.rc_context(style):
        figure = plt.figure(figsize=(13, 9.6), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=[1.1, 1.2])
        rate_axes, loss_axes = upper.subplots(2, 2, sharex="col", sharey="row", height_ratios=[1.6, 1])
        for axis, below, panel in zip(rate_axes, loss_axes, ABOVE, strict=True):
            drawn = curve(panel.config)
            draw_rate(axis, panel, drawn, "")
            draw_loss(below, axis, panel, drawn)
        lower_axes = lower.subplots(2, -(-len(BELOW) // 2), sharey=True)
        for axis, panel in zip(lower_axes.flat, BELOW, strict=False):
            config = panel.config
            draw_rate(axis, panel, curve(config), "epochs" if config.schedule.iterations is None else "iterations")
        for axis in lower_axes.flat[len(BELOW) :]:
            axis.set_axis_off()
        for axis in (rate_axes[0], *lower_axes[:, 0]):
            axis.set_ylabel("learning rate")
        loss_axes[1].set_ylabel("")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", default=DEFAULT, help="the PNG to write")
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    plot(path)
    print(f"schedules: {path}")


if __name__ == "__main__":
    main()
