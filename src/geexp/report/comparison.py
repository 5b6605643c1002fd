"""Runs side by side: a table for the terminal and for Markdown, and their learning curves as a picture."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from geexp.config.labels import ge_label
from geexp.report.style import VARIANT_STYLE
from geexp.runs.identity import flat
from geexp.runs.metrics import AP, TOP1_ERROR, score_of
from geexp.runs.run_files import read_history, read_result


@dataclass(frozen=True)
class Row:
    """One run. The figures are None if it has not come to its end; a detector has mAP instead of errors."""

    folder: str
    label: str
    top1_error: float | None = None
    best_top1_error: float | None = None
    params: int | None = None
    macs: int | None = None
    seconds: float | None = None
    mean_ap: float | None = None
    best_mean_ap: float | None = None

    def cells(self) -> list[str]:
        if self.params is None:
            return [self.label, "not finished", *[""] * 4]
        both = (self.mean_ap, self.best_mean_ap) if self.top1_error is None else (self.top1_error, self.best_top1_error)
        figures = [f"{figure:.2f} %" for figure in both]
        macs = "" if self.macs is None else f"{self.macs:,}"
        return [self.label, *figures, f"{self.params:,}", macs, f"{self.seconds:.0f}"]


def compare_runs(folders: list[Path], *, out: Path | None = None, show: bool = True) -> list[Row]:
    """Print the table of these runs on standard output, if ``show``, and write ``table.md`` and ``curves.png``.

    They go to ``out``, by default the deepest folder that holds all the runs. Runs that have not come to their end are
    shown as such.
    """
    out = out or Path(os.path.commonpath(folders))
    out.mkdir(parents=True, exist_ok=True)
    results = {folder: read_result(folder) for folder in folders}
    labels = _labels(results)
    rows = [_row(folder, result, labels[folder]) for folder, result in results.items()]
    if show:
        _print(rows, _title(results))
    (out / "table.md").write_text(_markdown(rows, _title(results)), encoding="utf-8")
    done = {folder: result for folder, result in results.items() if result is not None}
    if done:
        plot_curves(done, labels, out / "curves.png", _title(results))
        print(f"table: {out / 'table.md'}\ncurves: {out / 'curves.png'}", file=sys.stderr)
    return rows


def plot_curves(results: dict[Path, dict[str, Any]], labels: dict[Path, str], path: Path, title: str) -> None:
    """Top-1 error on the training and on the validation images against the epoch, one line per run.

    Of detectors the loss in training and the mAP.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    detectors = all(score_of(result["metrics"]["last"]) is AP for result in results.values())
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=not detectors, layout="constrained")
    for folder, result in results.items():
        history = read_history(folder)
        epochs = [row["epoch"] for row in history]
        style = VARIANT_STYLE[result["identity"]["ge"]["variant"]]
        drawing = {key: style[key] for key in ("color", "linestyle", "marker")} | {"markersize": 4}
        score = score_of(history[-1])
        of_training = "train/loss" if score is AP else "train/top1_error"
        axes[0].plot(epochs, [row[of_training] for row in history], **drawing)
        axes[1].plot(epochs, [row[score.key] for row in history], label=labels[folder], **drawing)
    for axis, split in zip(axes, ("training images, augmented", "validation images"), strict=True):
        axis.set_title(split, fontsize=10)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("loss" if detectors else "top-1 error, %")
    if detectors:
        axes[1].set_ylabel("mAP, %")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _row(folder: Path, result: dict[str, Any] | None, label: str) -> Row:
    if result is None:
        return Row(str(folder), label)
    metrics = result["metrics"]
    return Row(
        folder=str(folder),
        label=label,
        top1_error=metrics["last"].get(TOP1_ERROR.key),
        best_top1_error=metrics["best"].get(TOP1_ERROR.key),
        mean_ap=metrics["last"].get(AP.key),
        best_mean_ap=metrics["best"].get(AP.key),
        params=result["complexity"]["params"],
        macs=result["complexity"]["macs"],
        seconds=result["seconds"],
    )


def _labels(results: dict[Path, dict[str, Any] | None]) -> dict[Path, str]:
    """The variant, and in front or behind whatever else differs between the runs."""
    leaves = {folder: flat(result["identity"]) for folder, result in results.items() if result is not None}
    keys = sorted({key for leaf in leaves.values() for key in leaf})
    varying = [key for key in keys if len({str(leaf.get(key)) for leaf in leaves.values()}) > 1]
    named = [group for group in ("model", "data", "schedule") if f"{group}.name" in varying]
    # Groups of other names differ in their settings too: there the names say it.
    single = [
        key for key in varying if not key.startswith(("ge.", *(f"{group}." for group in named))) and key != "seed"
    ]
    labels = {}
    for folder, result in results.items():
        if result is None:
            labels[folder] = "/".join(folder.parts[-4:])
            continue
        leaf = leaves[folder]
        words = [ge_label(result["identity"]["ge"]), *(leaf[f"{group}.name"] for group in named if group != "model")]
        if "model" in named:
            words.insert(0, leaf["model.name"])
        words += [f"{key}={leaf.get(key)}" for key in single]
        if "seed" in varying:
            words.append(f"seed {leaf['seed']}")
        labels[folder] = " ".join(words)
    return labels


def _title(results: dict[Path, dict[str, Any] | None]) -> str:
    """What all the runs have in common."""
    finished = [result["identity"] for result in results.values() if result is not None]
    parts = []
    for group in ("model", "data", "schedule"):
        names = {known[group]["name"] for known in finished}
        if len(names) == 1:
            parts.append(names.pop())
    scales = sorted({known["scale"] for known in finished if "scale" in known})  # which is never the paper's protocol
    return ", ".join(parts + [f"scale {scale}" for scale in scales])


def _headings(rows: list[Row]) -> list[str]:
    of_classifiers = "top-1 error" if any(row.mean_ap is None for row in rows) else None
    of_detectors = "mAP" if any(row.mean_ap is not None for row in rows) else None
    judged_by = " or ".join(filter(None, [of_classifiers, of_detectors]))
    return [judged_by, "best", "parameters", "MACs", "seconds"]


def _print(rows: list[Row], title: str) -> None:
    table = Table(title=title)
    table.add_column("", overflow="fold")  # a label that is cut may be the same as another
    for heading in _headings(rows):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row.cells())
    Console().print(table)


def _markdown(rows: list[Row], title: str) -> str:
    headings = _headings(rows)
    lines = [f"{title}\n", f"| | {' | '.join(headings)} |", f"|---|{'---:|' * len(headings)}"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return "\n".join(lines) + "\n"
