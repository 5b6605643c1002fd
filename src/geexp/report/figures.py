"""Figures 2 to 8 from runs, with the numbers that the paper prints as open markers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geexp.analysis.drawing import canvas, draw_curves, save, variant_style
from geexp.report.analysed_figures import ANALYSED, draw_analysed
from geexp.report.curves import TRAIN, VAL, make_curve
from geexp.report.measured import Measured, Runs
from geexp.report.rows import FIGURES, Training, curves_of, rows_of

_EXTENTS = ("e2", "e4", "e8", "global")


@dataclass(frozen=True)
class Figure:
    """A figure as drawn: its files, and the commands for what is not in it."""

    number: int
    title: str
    files: tuple[Path, ...]
    missing: tuple[str, ...]

    @property
    def commands(self) -> list[tuple[str, str]]:
        """``missing``, each with an empty label."""
        return [("", command) for command in self.missing]


def draw_figures(runs: Runs, folder: Path, numbers: Sequence[int] = (*FIGURES, *ANALYSED)) -> list[Figure]:
    """``figure2.svg``, ``figure2.png`` and so on; no files for a figure with nothing measured and nothing printed."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(number, runs, folder / f"figure{number}") for number in sorted(numbers)]


def _draw(number: int, runs: Runs, path: Path) -> Figure:
    if number in ANALYSED:
        title = f"Figure {number}: {ANALYSED[number].title}"
        return Figure(number, title, *draw_analysed(number, runs, path))
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
