"""Which curves the page draws, grouped into pictures of one setting each."""

from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup

from geexp.analysis.drawing import Curve
from geexp.report.curves import TRAIN, VAL, by_setting, labels_of, make_curve, next_look
from geexp.report.measured import Measured, one_per_seed
from geexp.report.runs import FinishedRun
from geexp.report.tables import Column, Table

# Limits of what is drawn: 2,000 runs of 300 epochs would make a page of some hundred megabytes.
SETTINGS = 8
CURVES = 40  # in one setting
SEEDS_APART = 12  # with more curves than these, seeds are drawn as their mean
LONG = 20  # epochs, from which on the steep start is left out
POINTS = 200  # on one curve

# matplotlib's markers by plotly's names, and as paths around 0, 0.
_MARKERS = {
    "o": ("circle", "M3 0A3 3 0 1 1 -3 0A3 3 0 1 1 3 0Z"),
    "s": ("square", "M-2.6 -2.6H2.6V2.6H-2.6Z"),
    "^": ("triangle-up", "M0 -3.4L3.4 2.6H-3.4Z"),
    "D": ("diamond", "M0 -3.6L3.6 0L0 3.6L-3.6 0Z"),
    "v": ("triangle-down", "M0 3.4L-3.4 -2.6H3.4Z"),
    "p": ("pentagon", "M0 -3.4L3.2 -1.1L2 2.8H-2L-3.2 -1.1Z"),
    "*": ("star", "M0 -4L1 -1.3L3.8 -1.2L1.6 .5L2.4 3.2L0 1.6L-2.4 3.2L-1.6 .5L-3.8 -1.2L-1 -1.3Z"),
    "P": ("cross", "M-1.2 -3.4H1.2V-1.2H3.4V1.2H1.2V3.4H-1.2V1.2H-3.4V-1.2H-1.2Z"),
}


@dataclass(frozen=True)
class Group:
    """Runs that repeat a training with other seeds; their curves share a style."""

    number: int
    label: str
    style: dict[str, Any]
    runs: tuple[FinishedRun, ...]
    curves: tuple[Curve, ...]

    @property
    def train(self) -> float | None:
        """The training error of the last whole epoch, the mean of the drawn curves."""
        known = [[error for error in curve.values[TRAIN] if error is not None] for curve in self.curves]
        last = [errors[-1] for errors in known if errors]
        return mean(last) if last else None


@dataclass(frozen=True)
class Setting:
    """Runs on the same model, data and schedule, drawn in one picture.

    Every ``step``-th epoch is drawn; with ``means`` a curve is the mean over seeds. ``undrawn`` counts missing curves.
    """

    name: str
    protocol: str
    groups: tuple[Group, ...]
    undrawn: tuple[str, ...]
    step: int
    means: bool

    @property
    def drawing(self) -> dict[str, Any]:
        """For the page's script."""
        groups = [
            {
                **plotly_line(group.style),
                "label": escape(group.label),  # plotly reads a little HTML in its texts, and labels come from files
                "curves": [
                    {"name": curve.label, "epoch": curve.epochs, "train": curve.values[TRAIN], "val": curve.values[VAL]}
                    for curve in group.curves
                ],
            }
            for group in self.groups
        ]
        return {"range": _range([curve for group in self.groups for curve in group.curves]), "groups": groups}

    @property
    def legend(self) -> Table[Group]:
        def errors(group: Group, which: str) -> Measured:
            return Measured(group.runs, "top1", which)

        return Table(
            [
                Column("Curve", lambda group: group.label, right=False, css="label", html=_toggle),
                Column("seeds", lambda group: str(len(group.runs))),
                Column("validation, last", lambda g: errors(g, "last").spread, lambda g: errors(g, "last").mean),
                Column("validation, best", lambda g: errors(g, "best").spread, lambda g: errors(g, "best").mean),
                Column("training, last", lambda group: "–" if group.train is None else f"{group.train:.2f}"),
            ],
            self.groups,
            title=f"Legend of {self.name}",
        )


def _toggle(group: Group) -> str:
    button = Markup('<button type="button" class="toggle" aria-pressed="true" data-group="{}">{} {}</button>')
    return button.format(group.number, mark(group.style), group.label)


def settings_of(runs: Sequence[FinishedRun], filled: Container[Path]) -> tuple[list[Setting], list[tuple[str, int]]]:
    """The settings to draw, those that fill the paper's tables first, and names and number of runs of the others."""

    def weight(part: tuple[str, str, list[FinishedRun]]) -> tuple[Any, ...]:
        name, protocol, found = part
        networks = len({run.network for run in found})
        return -sum(run.folder in filled for run in found), -networks, -len(found), name, protocol

    drawn: list[Setting] = []
    undrawn: list[tuple[str, int]] = []
    for name, protocol, found in sorted(_parts(runs, filled), key=weight):
        setting = _drawn(name, protocol, found) if len(drawn) < SETTINGS else None
        if setting is not None:
            drawn.append(setting)
        else:
            undrawn.append((f"{name}, {protocol}" if protocol else name, len(found)))
    return drawn, undrawn


def _parts(runs: Sequence[FinishedRun], filled: Container[Path]) -> Iterator[tuple[str, str, list[FinishedRun]]]:
    """Name, protocol and runs of each picture.

    A protocol with several networks has its own; those of one model, data set and schedule with one network share one.
    """
    for name, protocols in by_setting(runs).items():
        single: list[FinishedRun] = []
        for words, found in protocols.items():
            if len(protocols) > 1 and len({run.network for run in found}) == 1:
                single += found
            elif any(run.folder in filled for run in found):
                yield name, "the paper's protocol", found
            else:
                yield name, words, found
        if single:
            yield name, "other protocols", single


def _drawn(name: str, protocol: str, runs: Sequence[FinishedRun]) -> Setting | None:
    """None if no run has a history."""
    runs = sorted(runs, key=lambda run: (run.place, run.seed))
    by_label: dict[str, list[FinishedRun]] = defaultdict(list)
    for run, label in zip(runs, labels_of(runs, seeds=False), strict=True):
        by_label[label].append(run)
    repeated = {label: one_per_seed(found) for label, found in by_label.items()}
    seeds = sum(map(len, repeated.values()))
    means = seeds > SEEDS_APART
    lines = {label: [found] if means else [[run] for run in found] for label, found in repeated.items()}
    groups: list[Group] = []
    left = CURVES
    empty = 0
    for label, found in repeated.items():
        shown = lines[label][:left]
        left -= len(shown)
        empty += sum(not run.history for line in shown for run in line)
        style = next_look(found[0].style, [group.style for group in groups])
        curves = [make_curve(line, (TRAIN, VAL), label=_seeds(line), style=style, points=POINTS) for line in shown]
        if drawable := tuple(curve for curve in curves if curve is not None):
            groups.append(Group(len(groups), label, style, tuple(found), drawable))
    if not groups:
        return None
    undrawn = {
        f"beyond the {CURVES} curves that a picture holds": max(0, sum(map(len, lines.values())) - CURVES),
        "without a history": empty,
        "repeated by a later run with the same seed": len(runs) - seeds,
    }
    texts = tuple(f"{count} {why}" for why, count in undrawn.items() if count)
    steps = (curve.epochs[1] - curve.epochs[0] for group in groups for curve in group.curves if len(curve.epochs) > 2)
    return Setting(name, protocol, tuple(groups), texts, max(steps, default=1), means)


def _seeds(line: Sequence[FinishedRun]) -> str:
    if len(line) == 1:
        return f"seed {line[0].seed}"
    return f"mean of {sum(bool(run.history) for run in line)} seeds"


def _range(curves: Sequence[Curve]) -> list[float] | None:
    """The range of the errors after the first tenth of a long run, in which they fall too far to see the rest."""
    if max(len(curve.epochs) for curve in curves) < LONG:
        return None
    series = [curve.values[key] for curve in curves for key in (TRAIN, VAL)]
    begun = [error for errors in series for error in errors[-(-len(errors) // 10) :] if error is not None]
    if not begun or max(begun) == min(begun):
        return None
    margin = (max(begun) - min(begun)) / 20
    return [max(0.0, min(begun) - margin), max(begun) + margin]


def ink(style: dict[str, Any]) -> str:
    """A style's colour in CSS; black is nearly white on a dark page."""
    return "var(--black)" if style["color"] == "#000000" else style["color"]


def dash(style: dict[str, Any], width: float = 2) -> str:
    """plotly's description of a dashed line; it is SVG's too."""
    line = style["linestyle"]
    return "solid" if line == "-" else ",".join(f"{part * width:g}px" for part in line[1])


def plotly_line(style: dict[str, Any]) -> dict[str, str]:
    """How plotly draws a curve; the page's script looks up the colour."""
    return {"colour": ink(style), "dash": dash(style), "symbol": _MARKERS[style["marker"]][0]}


def mark(style: dict[str, Any]) -> Markup:
    """A sample of a variant's line, small enough to stand in a text."""
    dashes = dash(style).replace("px", "").replace("solid", "")
    return Markup(
        '<svg class="mark" viewBox="0 0 28 10" aria-hidden="true">'
        '<path d="M0 5H28" stroke="{0}" stroke-width="2" stroke-dasharray="{1}"/>'
        '<path d="{2}" transform="translate(14 5)" fill="{0}"/></svg>'
    ).format(ink(style), dashes or "none", _MARKERS[style["marker"]][1])
