"""Figures 2 to 8 from runs, with the numbers that the paper prints as open markers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geexp.report.analysed_figures import ANALYSED, command_for, draw_analysed
from geexp.report.canvas import canvas, save
from geexp.report.measured import Measured, Runs
from geexp.report.rows import FIGURES, Training, curves_of, rows_of
from geexp.report.style import VARIANT_STYLE

_EXTENTS = ("e2", "e4", "e8", "global")


@dataclass(frozen=True)
class Figure:
    """A figure as drawn: its files, and the commands for what is not in it."""

    number: int
    title: str
    files: tuple[Path, ...]
    missing: tuple[str, ...]


def draw_figures(runs: Runs, folder: Path, numbers: Sequence[int] = (*FIGURES, *ANALYSED)) -> list[Figure]:
    """``figure2.svg``, ``figure2.png`` and so on; none for a figure of which nothing was run and nothing is printed."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(number, runs, folder) for number in sorted(numbers)]


def _draw(number: int, runs: Runs, folder: Path) -> Figure:
    if number in ANALYSED:
        title = f"Figure {number}: {ANALYSED[number].title}"
        return Figure(number, title, *draw_analysed(number, runs, folder / f"figure{number}"))
    return _figure2(runs, folder) if number == 2 else _curves(number, runs, folder)


def _figure2(runs: Runs, folder: Path) -> Figure:
    title = "Figure 2: top-1 error of ResNet-50 against the extent of GE"
    trainings, printed = curves_of(2), _printed()
    figure, axes = canvas(1, 2, title, sharey=True)
    reference = {"baseline": trainings["baseline"], "ResNet-101": rows_of(2)[0].cells[0].training}
    for axis, variant in zip(axes, ("theta_minus", "theta"), strict=True):
        style = VARIANT_STYLE[variant]
        for position, extent in enumerate(_EXTENTS):
            training = trainings[f"{variant}_{extent}"]
            _point(axis, position, _measured(runs, training), printed.get(training.network), style)
        measured = [_measured(runs, trainings[f"{variant}_{extent}"]) for extent in _EXTENTS]
        line = [(x, m.mean) for x, m in enumerate(measured) if m is not None]
        axis.plot(*zip(*line, strict=True) if line else ((), ()), color=style["color"], linestyle=style["linestyle"])
        for name, training in reference.items():
            found = _measured(runs, training)
            height = found.mean if found is not None else printed[training.network]
            dash = VARIANT_STYLE["none"]["linestyle"] if name == "baseline" else (0, (1, 2))
            axis.axhline(height, color="#000000", linestyle=dash, linewidth=1)
            said = f"{name} {height:.2f}" + ("" if found is not None else ", as printed")
            axis.annotate(said, (0.02, height), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
        axis.set_title(style["label"], fontsize=10)
        axis.set_xticks(range(len(_EXTENTS)), ["2", "4", "8", "global"])
        axis.set_xlim(-0.3, len(_EXTENTS) - 0.7)
        axis.set_xlabel("extent")
    axes[0].set_ylabel("top-1 error, %")
    handles = [
        axes[1].plot([], [], "o", color="#555555", fillstyle=fill, linestyle="none")[0] for fill in ("full", "none")
    ]
    axes[1].legend(handles, ["measured, mean ± std", "printed in the paper"], fontsize=8)
    return Figure(2, title, save(figure, folder / "figure2"), _missing(runs, trainings))


def _curves(number: int, runs: Runs, folder: Path) -> Figure:
    network = {4: "ResNet-50", 6: "ShuffleNet"}[number]
    title = f"Figure {number}: {network}, learning rate divided by 10 every 30 epochs"
    trainings = curves_of(number)
    missing = _missing(runs, trainings)
    if len(missing) == len(trainings):
        return Figure(number, title, (), missing)
    figure, (axis,) = canvas(1, 1, title)
    for training in trainings.values():
        style = VARIANT_STYLE[training.ge["variant"]]
        for n, run in enumerate(runs.faithful(training)):
            history = run.history()
            epochs = [row["epoch"] for row in history]
            for split, width in (("train", 0.8), ("val", 1.8)):
                label = f"{style['label']}, {split}" if n == 0 else None
                errors = [row[f"{split}/top1_error"] for row in history]
                how = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": width}
                axis.plot(epochs, errors, label=label, alpha=0.55 if split == "train" else 1.0, **how)
    axis.set_xlabel("epoch")
    axis.set_ylabel("top-1 error, %")
    axis.legend(fontsize=9)
    return Figure(number, title, save(figure, folder / f"figure{number}"), missing)


def _point(axis: Any, x: float, measured: Measured | None, printed: float | None, style: dict[str, Any]) -> None:
    how = {"color": style["color"], "marker": style["marker"], "markersize": 7, "linestyle": "none"}
    if printed is not None:
        axis.plot([x], [printed], fillstyle="none", **how)
    if measured is not None:
        axis.errorbar([x], [measured.mean], yerr=[measured.std or 0.0], capsize=3, **how)


def _printed() -> dict[Any, float]:
    """The top-1 errors that any table prints for a network trained as Figure 2's are."""
    return {
        cell.training.network: cell.printed
        for table in (1, 2, 6)
        for row in rows_of(table)
        for cell in row.cells
        if cell.metric == "top1"
    }


def _measured(runs: Runs, training: Training) -> Measured | None:
    found = runs.faithful(training)
    return Measured(tuple(found), "top1") if found else None


def _missing(runs: Runs, trainings: dict[str, Training]) -> tuple[str, ...]:
    return tuple(command_for(training) for training in trainings.values() if not runs.faithful(training))
