"""Error against the epoch, and against the extent, of any classification runs (as the paper's Figures 2, 4 and 6).

The figures with the paper's own numbers, for runs that follow its protocol, are made by ``python -m geexp.report``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from geexp.analysis.analyse import FOLDER, labels_of, log_picture, show, wandb_run_of, write_table
from geexp.analysis.drawing import Curve, canvas, draw_side_by_side, line_styles, save, text_table, variant_style
from geexp.config.errors import ConfigError, DataError
from geexp.config.schema import AnalyzeConfig
from geexp.data.parallel import with_bar
from geexp.registry import options
from geexp.runs.metrics import TOP1_ERROR
from geexp.runs.run import Result, Run, find_runs

if TYPE_CHECKING:
    import pandas as pd

_GLOBAL = "global"


def draw_curves(settings: AnalyzeConfig) -> None:
    """``curves`` and, if a variant was trained with several extents, ``extents``: as CSV, SVG and PNG.

    Raises:
        DataError: if there is no finished run.
        ConfigError: with ``wandb=true`` for several runs, since the picture of all belongs to none of them.
    """
    folder = Path(str(settings.run))
    out = Path(settings.out) if settings.out else folder / FOLDER
    runs = [*_finished(folder), *(_finished(Path(settings.against)) if settings.against else [])]
    if settings.wandb and len(runs) > 1:
        raise ConfigError(f"wandb=true: {folder} holds {len(runs)} runs; set run=<the folder of one of them>.")
    wandb_run = wandb_run_of(runs[0][0].folder) if settings.wandb else None
    tables = _read(out) if settings.redraw else _tables(runs)
    out.mkdir(parents=True, exist_ok=True)
    pictures = list(_epochs(tables["curves"], out / "curves"))
    if len(tables["extents"]):
        pictures += _extents(tables["extents"], out / "extents")
    files = {} if settings.redraw else {name: out / f"{name}.csv" for name in tables}
    for name, path in files.items():
        write_table(path, tables[name])
    show(settings, {}, tables, _summary(tables["curves"]), list(files.values()), pictures)
    if wandb_run is not None:
        log_picture(wandb_run, f"{FOLDER}/curves", pictures[:2])


def _finished(folder: Path) -> list[tuple[Run, Result]]:
    """The finished runs of classifiers, by network, then by variant in the paper's order."""
    if not folder.is_dir():
        raise DataError(f"run={folder}: there is no such folder")
    found, reasons = [], []
    for run in with_bar(find_runs(folder), f"reading the runs in {folder}"):
        try:
            result = run.read_result()
        except DataError as error:
            reasons.append(f" ({run.folder}: {error})")
        else:
            if not result.detects:
                found.append((run, result))
    if not found:
        reason = reasons[0] if reasons else ""
        raise DataError(f"run={folder}: holds no finished run of a classifier{reason}; curves need at least one.")
    order = [*options("ge"), None]

    def place(item: tuple[Run, Result]) -> tuple[str, int, str]:
        leaves, variant = item[1].leaves, item[1].leaves["ge.variant"]
        return leaves["model.name"], order.index(variant if variant in order else None), str(item[0].folder)

    return sorted(found, key=place)


def _tables(runs: Sequence[tuple[Run, Result]]) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    results = [result for _, result in runs]
    labels = labels_of([r.leaves for r in results], [r.seed for r in results], [r.ge_label for r in results])
    curves, extents = [], []
    for (run, result), label in zip(runs, labels, strict=True):
        leaves = result.leaves
        variant = leaves["ge.variant"]
        for row in run.history():
            errors = {split: row[f"{split}/top1_error"] for split in ("train", "val")}
            curves.append({"network": label, "variant": variant, "epoch": row["epoch"], **errors})
        extents.append(
            {
                "setting": ", ".join(leaves[key] for key in ("model.name", "data.name", "schedule.name")),
                "variant": variant,
                "extent": str(leaves.get("ge.extent", "")),
                "stages": str(leaves.get("ge.stages", "")),
                "pool": leaves.get("ge.pool", ""),
                "seed": result.seed,
                "top1_error": float(result.metrics["last"][TOP1_ERROR.key]),
            }
        )
    table = pd.DataFrame(extents)
    several = table[table["variant"] != "none"].groupby(["setting", "variant", "stages", "pool"])["extent"].nunique()
    return {"curves": pd.DataFrame(curves), "extents": table if (several > 1).any() else table.iloc[:0]}


def _read(out: Path) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    try:
        return {name: pd.read_csv(out / f"{name}.csv", keep_default_na=False) for name in ("curves", "extents")}
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: the data of an earlier drawing are missing ({error}). Leave redraw out.") from error


def _epochs(curves: "pd.DataFrame", path: Path) -> tuple[Path, ...]:
    networks = list(curves.groupby("network", sort=False))
    styles = line_styles([str(rows["variant"].iloc[0]) for _, rows in networks])
    drawn = [
        Curve(
            str(network), style, rows["epoch"].to_list(), {split: rows[split].to_list() for split in ("train", "val")}
        )
        for (network, rows), style in zip(networks, styles, strict=True)
    ]
    figure, axes = canvas(1, 2, "Top-1 error against the epoch", sharey=True)
    draw_side_by_side(figure, axes, drawn, ("train", "val"))
    axes[0].set_ylabel("top-1 error, %")
    return save(figure, path)


def _extents(table: "pd.DataFrame", path: Path) -> tuple[Path, ...]:
    """A panel per setting, a line per variant; the baseline as a horizontal line."""
    numbers = sorted({int(extent) for extent in table["extent"] if extent not in ("", _GLOBAL)})
    places = {str(extent): place for place, extent in enumerate([*numbers, _GLOBAL])}
    settings = [name for name, rows in table.groupby("setting", sort=False) if (rows["variant"] != "none").any()]
    figure, axes = canvas(1, len(settings), "Top-1 error against the extent of GE", sharey=True)
    for axis, setting in zip(axes, settings, strict=True):
        rows = table[table["setting"] == setting]
        for (variant, _stages, pool), line in rows[rows["variant"] != "none"].groupby(["variant", "stages", "pool"]):
            own = variant_style(str(variant))
            error = line.groupby("extent")["top1_error"].agg(["mean", "std"])
            error = error.loc[sorted(error.index, key=places.__getitem__)]
            label = own["label"] + (", max" if pool == "max" else "")
            how: dict[str, Any] = {key: own[key] for key in ("color", "linestyle", "marker")}
            at = [places[extent] for extent in error.index]
            axis.errorbar(at, error["mean"], yerr=error["std"].fillna(0), capsize=3, label=label, **how)
        baseline = rows[rows["variant"] == "none"]["top1_error"]
        if len(baseline):
            own = variant_style("none")
            axis.axhline(baseline.mean(), color=own["color"], linestyle=own["linestyle"], label=own["label"])
        axis.set_title(setting, fontsize=10)
        axis.set_xticks(range(len(places)), list(places))
        axis.set_xlabel("extent")
        axis.legend(fontsize=9)
    axes[0].set_ylabel("top-1 error, %, last epoch")
    return save(figure, path)


def _summary(curves: "pd.DataFrame") -> Table:
    headings = ("epochs", "training images", "validation images")
    table = text_table("top-1 error after the last epoch, %", ("network",), headings)
    for row in curves.groupby("network", sort=False).tail(1).to_dict("records"):
        table.add_row(row["network"], str(row["epoch"]), f"{row['train']:.2f}", f"{row['val']:.2f}")
    return table
