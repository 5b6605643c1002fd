"""Runs side by side: a table, their curves, and a list of all trainings with their seeds."""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from geexp.analysis.drawing import canvas, draw_side_by_side, save
from geexp.config.extras import missing
from geexp.config.process import PlainConsole
from geexp.report.curves import TRAIN, VAL, labels_of, make_curve, next_look
from geexp.report.measured import Measured, one_per_seed
from geexp.report.runs import FinishedRun, finished_or_left_out
from geexp.report.tables import Column, Table, of_dicts, to_markdown, to_terminal
from geexp.runs.metrics import AP
from geexp.runs.run import Run


@dataclass(frozen=True)
class Row:
    """One run. The figures are None if it is not complete; a detector has mAP instead of errors."""

    folder: str
    label: str
    top1_error: float | None = None
    best_top1_error: float | None = None
    params: int | None = None
    macs: int | None = None
    seconds: float | None = None
    mean_ap: float | None = None
    best_mean_ap: float | None = None


def compare_runs(folders: list[Path]) -> list[Row]:
    """Compare the runs of a sweep in the deepest folder that holds them all; those not complete are shown as such.

    Prints the table on standard output and writes ``table.md`` and ``curves.png``.
    """
    found = [finished_or_left_out(Run(folder)) for folder in folders]
    return write_comparison(
        [run for run in found if isinstance(run, FinishedRun)],
        Path(os.path.commonpath(folders)),
        unfinished=[left.folder for left in found if not isinstance(left, FinishedRun)],
    )


def write_comparison(
    runs: Sequence[FinishedRun], out: Path, *, unfinished: Sequence[Path] = (), show: bool = True
) -> list[Row]:
    """``table.md`` and ``curves.png`` in ``out``, and if ``show`` the table on standard output."""
    out.mkdir(parents=True, exist_ok=True)
    labels = labels_of(runs)
    rows = [_row(run, label) for run, label in zip(runs, labels, strict=True)]
    rows += [Row(str(folder), "/".join(folder.parts[-4:])) for folder in unfinished]
    table = _table(rows, _common(runs))
    if show:
        PlainConsole().print(to_terminal(table))
    (out / "table.md").write_text(f"{table.title}\n\n{to_markdown(table)}", encoding="utf-8", errors="backslashreplace")
    print(f"table: {out / 'table.md'}", file=sys.stderr)
    if runs and "matplotlib" not in missing("report"):
        _draw(runs, labels, out / "curves.png", table.title)
        print(f"curves: {out / 'curves.png'}", file=sys.stderr)
    return rows


def _row(run: FinishedRun, label: str) -> Row:
    complexity, seconds = run.result.complexity, run.result.seconds
    row = {"folder": str(run.folder), "label": label, "params": complexity["params"], "macs": complexity["macs"]}
    if run.detector:
        return Row(**row, seconds=seconds, mean_ap=run.figure("map"), best_mean_ap=run.figure("map", "best"))
    return Row(**row, seconds=seconds, top1_error=run.figure("top1"), best_top1_error=run.figure("top1", "best"))


def _table(rows: Sequence[Row], title: str) -> Table[Row]:
    detectors = any(row.mean_ap is not None for row in rows)

    def last(row: Row) -> str:
        figure = row.mean_ap if row.top1_error is None else row.top1_error
        return "not finished" if figure is None else f"{figure:.2f} %"

    def best(row: Row) -> str:
        figure = row.best_mean_ap if row.best_top1_error is None else row.best_top1_error
        return "" if figure is None else f"{figure:.2f} %"

    columns = [
        Column[Row]("", lambda row: row.label, right=False),
        Column("mAP" if detectors else "top-1 error", last),
        Column("best", best),
        Column("parameters", lambda row: "" if row.params is None else f"{row.params:,}"),
        Column("MACs", lambda row: "" if row.macs is None else f"{row.macs:,}"),
        Column("seconds", lambda row: "" if row.seconds is None else f"{row.seconds:.0f}"),
    ]
    return Table(columns, rows, title=title)


def _common(runs: Sequence[FinishedRun]) -> str:
    """The model, data set and schedule that all runs share, and their scales."""
    names = [{run.identity[f"{group}.name"] for run in runs} for group in ("model", "data", "schedule")]
    scales = sorted({run.identity["scale"] for run in runs if "scale" in run.identity})
    return ", ".join([found.pop() for found in names if len(found) == 1] + [f"scale {scale}" for scale in scales])


def _draw(runs: Sequence[FinishedRun], labels: Sequence[str], path: Path, title: str) -> None:
    """Top-1 error on the training and on the validation images; of detectors, the training loss and the mAP."""
    detectors = all(run.detector for run in runs)
    metrics = ("train/loss", AP.key) if detectors else (TRAIN, VAL)
    looks: dict[str, dict[str, Any]] = {}  # repeated seeds of a training look the same
    for run, label in zip(runs, labels_of(runs, seeds=False), strict=True):
        looks.setdefault(label, next_look(run.style, list(looks.values())))
    curves = [
        make_curve([run], metrics, label=label, style=looks[training])
        for run, label, training in zip(runs, labels, labels_of(runs, seeds=False), strict=True)
    ]
    figure, axes = canvas(1, 2, title, sharey=not detectors)
    draw_side_by_side(figure, axes, [curve for curve in curves if curve is not None], metrics)
    axes[0].set_ylabel("loss" if detectors else "top-1 error, %")
    if detectors:
        axes[1].set_ylabel("mAP, %")
    save(figure, path.with_suffix(""), suffixes=(".png",))


def trained(runs: Sequence[FinishedRun]) -> Table[dict[str, Any]]:
    """A row per training with its seeds, hardware and command; figures of the last epoch as mean ± std (n)."""
    groups: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(run.identity, sort_keys=True, default=str)].append(run)
    rows = [_trained_row(one_per_seed(group)) for group in groups.values()]
    return of_dicts(list(dict.fromkeys(key for row in rows for key in row)), rows)


def _trained_row(runs: list[FinishedRun]) -> dict[str, Any]:
    first = runs[0]
    identity, result = first.identity, first.result
    scale = f", {identity['scale']}" if identity.get("scale") else ""
    figures = {"map": "mAP, %"} if first.detector else {"top1": "top-1 error, %", "top5": "top-5 error, %"}
    detector = f", {identity['detector.layout']} detector" if first.detector else ""
    commits = {str(run.result.environment.get("commit"))[:10] for run in runs}
    return {
        "network": f"{first.model_label} {first.label}{detector}",
        "data": f"{identity['data.name']}{scale}",
        "schedule": f"{identity['schedule.name']}, {result.epochs} epochs",
        "seeds": ", ".join(str(run.seed) for run in runs),
        **{heading: str(Measured(tuple(runs), metric)) for metric, heading in figures.items()},
        "parameters": f"{result.complexity['params']:,}",
        "MACs": "" if first.detector else f"{result.complexity['macs']:,}",
        "seconds a run": f"{mean(run.result.seconds for run in runs):.0f}",
        "hardware": ", ".join(sorted({hardware(run) for run in runs})),
        "commit": ", ".join(sorted(commits)),
        "command": f"`{result.command}`",
    }


def hardware(run: FinishedRun) -> str:
    """``2 × H200``, or processor and threads."""
    known = run.result.environment
    if known.get("gpu"):
        return f"{run.result.devices.get('count', 1)} × {known['gpu']}"
    return processor(known)


def processor(environment: dict[str, Any]) -> str:
    """``AMD EPYC, 2 threads``: what a record's environment says of it."""
    threads = environment.get("threads")
    return f"{environment.get('processor')}, {threads} {'thread' if threads == 1 else 'threads'}"
