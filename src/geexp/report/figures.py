"""Figures 2 to 8: errors of runs, with printed numbers as open markers, and analyses of trained networks."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from geexp.analysis import pruning, selectivity
from geexp.analysis.analyse import FOLDER, Analysis, Network, read_analysis
from geexp.analysis.drawing import canvas, draw_curves, save, variant_style
from geexp.config.errors import DataError
from geexp.report.curves import TRAIN, VAL, make_curve
from geexp.report.measured import Measured, Runs
from geexp.report.rows import FIGURES, Training, curves_of, differing, rows_of

_EXTENTS = ("e2", "e4", "e8", "global")
_BASELINE = "ResNet-50 (Baseline)"
# Title, analysis, and the labels of the networks in Table 2, the main one first.
_ANALYSED = {
    3: ("class selectivity of ResNet-50 and GE-θ", "selectivity", ("GE-θ", _BASELINE)),
    5: ("feature importance in GE-θ", "pruning", ("GE-θ", _BASELINE)),
    7: ("class selectivity of ResNet-50, GE-θ⁻ and SE", "selectivity", ("GE-θ⁻", "SE", _BASELINE)),
    8: ("feature importance in SE", "pruning", ("SE", _BASELINE)),
}
_DRAW = {"selectivity": selectivity.draw, "pruning": pruning.draw}


@dataclass(frozen=True)
class Figure:
    """A figure as drawn: its files, none if there is nothing to draw, and the commands for what is not in it."""

    number: int
    title: str
    files: tuple[Path, ...]
    missing: tuple[str, ...]


def draw_figures(runs: Runs, folder: Path, numbers: Sequence[int] = (*FIGURES, *_ANALYSED)) -> list[Figure]:
    """Draw the figures as ``figure2.svg``, ``figure2.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for number in sorted(numbers):
        draw = _of_analysis if number in _ANALYSED else _of_errors
        figures.append(draw(number, runs, folder / f"figure{number}"))
    return figures


def _of_errors(number: int, runs: Runs, path: Path) -> Figure:
    trainings = curves_of(number)
    missing = tuple(training.command for training in trainings.values() if not runs.faithful(training))
    if number == 2:
        title = "Figure 2: top-1 error of ResNet-50 against the extent of GE"
        return Figure(number, title, _figure2(runs, title, path), missing)
    network = next(iter(trainings.values())).config.model.label
    title = f"Figure {number}: {network}, learning rate divided by 10 every 30 epochs"
    files = _curves(runs, trainings, title, path) if len(missing) < len(trainings) else ()
    return Figure(number, title, files, missing)


def _figure2(runs: Runs, title: str, path: Path) -> tuple[Path, ...]:
    trainings, printed = curves_of(2), _printed()
    figure, axes = canvas(1, 2, title, sharey=True)
    reference = {"baseline": trainings["baseline"], "ResNet-101": rows_of(2)[0].training}
    for axis, variant in zip(axes, ("theta_minus", "theta"), strict=True):
        style = variant_style(variant)
        of_extents = [trainings[f"{variant}_{extent}"] for extent in _EXTENTS]
        measured = [runs.of_training(training, "top1") for training in of_extents]
        for position, (training, found) in enumerate(zip(of_extents, measured, strict=True)):
            _point(axis, position, found, printed.get(training.network), style)
        line = [(x, found.mean) for x, found in enumerate(measured) if found is not None]
        axis.plot(*zip(*line, strict=True) if line else ((), ()), color=style["color"], linestyle=style["linestyle"])
        for name, training in reference.items():
            found = runs.of_training(training, "top1")
            height = found.mean if found is not None else printed[training.network]
            dash = variant_style("none")["linestyle"] if name == "baseline" else (0, (1, 2))
            axis.axhline(height, color="#000000", linestyle=dash, linewidth=1)
            text = f"{name} {height:.2f}" + ("" if found is not None else ", as printed")
            axis.annotate(text, (0.02, height), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
        axis.set_title(style["label"], fontsize=10)
        axis.set_xticks(range(len(_EXTENTS)), ["2", "4", "8", "global"])
        axis.set_xlim(-0.3, len(_EXTENTS) - 0.7)
        axis.set_xlabel("extent")
    axes[0].set_ylabel("top-1 error, %")
    handles = [
        axes[1].plot([], [], "o", color="#555555", fillstyle=fill, linestyle="none")[0] for fill in ("full", "none")
    ]
    axes[1].legend(handles, ["measured, mean ± std", "printed in the paper"], fontsize=8)
    return save(figure, path)


def _curves(runs: Runs, trainings: dict[str, Training], title: str, path: Path) -> tuple[Path, ...]:
    figure, (axis,) = canvas(1, 1, title)
    for training in trainings.values():
        for n, run in enumerate(runs.faithful(training)):
            label = variant_style(training.variant)["label"] if n == 0 else "_"  # one entry in the legend for all seeds
            curve = make_curve([run], (TRAIN, VAL), label=label, style=run.style | {"marker": ""})
            if curve is not None:
                draw_curves(axis, [curve], TRAIN, suffix=", train", linewidth=0.8, alpha=0.55)
                draw_curves(axis, [curve], VAL, suffix=", val", linewidth=1.8)
    axis.set_xlabel("epoch")
    axis.set_ylabel("top-1 error, %")
    axis.legend(fontsize=9)
    return save(figure, path)


def _point(axis: Any, x: float, measured: Measured | None, printed: float | None, style: dict[str, Any]) -> None:
    look = {"color": style["color"], "marker": style["marker"], "markersize": 7, "linestyle": "none"}
    if printed is not None:
        axis.plot([x], [printed], fillstyle="none", **look)
    if measured is not None:
        axis.errorbar([x], [measured.mean], yerr=[measured.std or 0.0], capsize=3, **look)


def _printed() -> dict[Any, float]:
    """The top-1 errors that any table prints for a network trained as Figure 2's are."""
    rows = (row for table in (1, 2, 6) for row in rows_of(table))
    return {cell.training.network: cell.printed for row in rows for cell in row.cells if cell.metric == "top1"}


def _of_analysis(number: int, runs: Runs, path: Path) -> Figure:
    name, analysis, labels = _ANALYSED[number]
    title = f"Figure {number}: {name}"
    by_label = {row.label: row.training for row in rows_of(2)}
    trainings = [by_label[label] for label in labels]
    stored = [found for training in trainings for found in _stored(runs, training, analysis)]
    shown: list[tuple[Analysis, Network]] = []
    missing = []
    for training in trainings:
        matching = [
            (one, network)
            for one in stored
            for network in one.networks
            if not differing(network.identity, training.identity)
        ]
        if matching:
            shown.append(matching[0])
        elif trained := runs.faithful(training):
            missing.append(f"python -m geexp.analyze analysis={analysis} run={shlex.quote(str(trained[0].folder))}")
        else:
            missing.append(training.command)
    files = _DRAW[analysis](_joined(shown), path, title) if shown else ()
    return Figure(number, title, files, tuple(missing))


def _stored(runs: Runs, training: Training, analysis: str) -> list[Analysis]:
    """The analyses in the folders of the training's runs; each may show networks of other runs as well."""
    found = []
    for run in runs.faithful(training):
        try:
            found.append(read_analysis(run.folder / FOLDER, analysis))
        except DataError:
            continue
    return found


def _joined(shown: Sequence[tuple[Analysis, Network]]) -> Analysis:
    first, _ = shown[0]
    tables = {
        name: pd.concat([analysis.of(network, name) for analysis, network in shown], ignore_index=True)
        for name in first.tables
    }
    return replace(first, networks=tuple(network for _, network in shown), tables=tables)
