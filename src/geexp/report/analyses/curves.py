"""Error against the epoch, and against the extent, of whatever runs there are (as the paper's Figures 2, 4 and 6).

The figures with the paper's own numbers, of runs that follow its protocol, are python -m geexp.report's.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import AnalyzeConfig
from geexp.report.analyses.at_wandb import show_at_wandb, wandb_run_of
from geexp.report.analyses.stored import FOLDER, labels_of
from geexp.report.canvas import canvas, save
from geexp.report.runs import Run, read_runs
from geexp.report.style import SECOND_LOOK, VARIANT_STYLE
from geexp.runs.atomic_write import atomic_write

_GLOBAL = "global"


def draw_curves(settings: AnalyzeConfig) -> dict[str, pd.DataFrame]:
    """``curves`` and, where one variant was trained with several extents, ``extents``: as CSV, SVG and PNG.

    Raises:
        DataError: where there is no finished run.
        ConfigError: with ``wandb=true``, for several runs, of which none can show the picture of all.
    """
    folder = Path(str(settings.run)).expanduser()
    out = Path(settings.out).expanduser() if settings.out else folder / FOLDER
    runs = [*_runs(folder), *(_runs(Path(settings.against).expanduser()) if settings.against else [])]
    if settings.wandb and len(runs) > 1:
        raise ConfigError(f"wandb=true: {folder} holds {len(runs)} runs; say run=<the folder of one of them>.")
    at_wandb = wandb_run_of(runs[0].folder) if settings.wandb else None
    tables = _read(out) if settings.redraw else _tables(runs)
    out.mkdir(parents=True, exist_ok=True)
    pictures = list(_epochs(tables["curves"], out / "curves"))
    if len(tables["extents"]):
        pictures += _extents(tables["extents"], out / "extents")
    if not settings.redraw:
        for name, table in tables.items():
            with atomic_write(out / f"{name}.csv") as file:
                file.write(table.to_csv(index=False).encode())
            print(f"data: {out / name}.csv", file=sys.stderr)
    last = tables["curves"].groupby("network", sort=False).tail(1)
    if settings.format == "json":
        rows = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        print(json.dumps({"tables": rows, "pictures": [str(path) for path in pictures]}, ensure_ascii=False))
    else:
        Console().print(_summary(last))
    for path in pictures:
        print(f"picture: {path}", file=sys.stderr)
    if at_wandb is not None:
        show_at_wandb(at_wandb, f"{FOLDER}/curves", pictures[:2])
    return tables


def _runs(folder: Path) -> list[Run]:
    if not folder.is_dir():
        raise DataError(f"run={folder}: there is no such folder")
    runs, left_out = read_runs(folder)
    runs = [run for run in runs if not run.detector]  # which have no errors
    if not runs:
        why = f" ({left_out[0].folder}: {left_out[0].reason})" if left_out else ""
        raise DataError(f"run={folder}: no finished run of a classifier is there{why}; curves are drawn of those.")
    return runs


def _tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    labels = labels_of([run.identity for run in runs], [run.seed for run in runs])
    curves, extents = [], []
    for run, label in zip(runs, labels, strict=True):
        variant = run.identity["ge.variant"]
        for row in run.history():
            errors = {split: row[f"{split}/top1_error"] for split in ("train", "val")}
            curves.append({"network": label, "variant": variant, "epoch": row["epoch"], **errors})
        setting = run.identity["model.name"], run.identity["data.name"], run.identity["schedule.name"]
        place = {
            "extent": str(run.identity.get("ge.extent", "")),
            "stages": str(run.identity.get("ge.stages", "")),
            "pool": run.identity.get("ge.pool", ""),
        }
        error = {"seed": run.seed, "top1_error": run.figure("top1")}
        extents.append({"setting": ", ".join(setting), "variant": variant, **place, **error})
    table = pd.DataFrame(extents)
    several = table[table["variant"] != "none"].groupby(["setting", "variant", "stages", "pool"])["extent"].nunique()
    return {"curves": pd.DataFrame(curves), "extents": table if (several > 1).any() else table.iloc[:0]}


def _read(out: Path) -> dict[str, pd.DataFrame]:
    try:
        return {name: pd.read_csv(out / f"{name}.csv", keep_default_na=False) for name in ("curves", "extents")}
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: the data of an earlier drawing are not there ({error}). Leave redraw out.") from error


def _epochs(curves: pd.DataFrame, path: Path) -> tuple[Path, ...]:
    figure, axes = canvas(1, 2, "Top-1 error against the epoch", sharey=True)
    seen: set[str] = set()
    for network, rows in curves.groupby("network", sort=False):
        variant = str(rows["variant"].iloc[0])
        look = SECOND_LOOK if variant in seen else VARIANT_STYLE[variant]
        seen.add(variant)
        style = {key: look[key] for key in ("color", "linestyle", "marker")} | {"markersize": 4}
        for axis, split in zip(axes, ("train", "val"), strict=True):
            axis.plot(rows["epoch"], rows[split], label=network, **style)
    for axis, split in zip(axes, ("training images, augmented", "validation images"), strict=True):
        axis.set_title(split, fontsize=10)
        axis.set_xlabel("epoch")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("top-1 error, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return save(figure, path)


def _extents(table: pd.DataFrame, path: Path) -> tuple[Path, ...]:
    """A panel per setting, a line per variant; the baseline across."""
    numbers = sorted({int(extent) for extent in table["extent"] if extent not in ("", _GLOBAL)})
    places = {str(extent): place for place, extent in enumerate([*numbers, _GLOBAL])}
    settings = [name for name, rows in table.groupby("setting", sort=False) if (rows["variant"] != "none").any()]
    figure, axes = canvas(1, len(settings), "Top-1 error against the extent of GE", sharey=True)
    for axis, setting in zip(axes, settings, strict=True):
        rows = table[table["setting"] == setting]
        for (variant, _stages, pool), line in rows[rows["variant"] != "none"].groupby(["variant", "stages", "pool"]):
            look = VARIANT_STYLE[str(variant)]
            error = line.groupby("extent")["top1_error"].agg(["mean", "std"])
            error = error.loc[sorted(error.index, key=places.__getitem__)]
            label = look["label"] + (", max" if pool == "max" else "")
            how: dict[str, Any] = {key: look[key] for key in ("color", "linestyle", "marker")}
            at = [places[extent] for extent in error.index]
            axis.errorbar(at, error["mean"], yerr=error["std"].fillna(0), capsize=3, label=label, **how)
        baseline = rows[rows["variant"] == "none"]["top1_error"]
        if len(baseline):
            look = VARIANT_STYLE["none"]
            axis.axhline(baseline.mean(), color=look["color"], linestyle=look["linestyle"], label=look["label"])
        axis.set_title(setting, fontsize=10)
        axis.set_xticks(range(len(places)), list(places))
        axis.set_xlabel("extent")
        axis.legend(fontsize=9)
    axes[0].set_ylabel("top-1 error, %, last epoch")
    return save(figure, path)


def _summary(last: pd.DataFrame) -> Table:
    table = Table(title="top-1 error after the last epoch, %")
    table.add_column("network")
    for heading in ("epochs", "training images", "validation images"):
        table.add_column(heading, justify="right")
    for row in last.to_dict("records"):
        table.add_row(row["network"], str(row["epoch"]), f"{row['train']:.2f}", f"{row['val']:.2f}")
    return table
