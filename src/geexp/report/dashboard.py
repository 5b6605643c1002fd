"""A report at W&B: a sweep's results beside the paper's, a live table of its runs, and their curves."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.expr import And, FilterExpr, Metric, Tags

from geexp.analysis.drawing import variant_style
from geexp.report.measured import Runs
from geexp.report.paper_tables import paper_table
from geexp.report.report import report_table
from geexp.report.rows import DETECTION, SWEEPS, TABLES, Training, presets_of, trainings_of
from geexp.report.tables import to_markdown
from geexp.runs.atomic_write import atomic_write
from geexp.runs.identity import network_label
from geexp.runs.metrics import AP
from geexp.training import wandb_content as keys

COCO = "coco"  # the sweep of the detection experiment


@dataclass(frozen=True)
class _Shown:
    """The metrics of a report by their keys at W&B: of every epoch, and of the summary."""

    name: str
    validation: str
    training: tuple[str, str]  # title and key
    last: str
    best: str
    columns: tuple[str, ...]


_ERRORS = _Shown(
    name="top-1 error",
    validation=keys.ERROR,
    training=("top-1 error, training, %", keys.TRAIN_ERROR),
    last=keys.LAST,
    best=keys.BEST,
    columns=(keys.LAST, keys.LAST5, keys.BEST, keys.PARAMS, keys.MACS),
)
_DETECTORS = _Shown(
    name="mAP",
    validation=AP.key,
    training=("loss, training", keys.LOSS),
    last=keys.LAST_AP,
    best=keys.BEST_AP,
    columns=(keys.LAST_AP, keys.LAST_AP50, keys.BEST_AP, keys.PARAMS),
)


def make_dashboard(sweep: str, *, entity: str, project: str, runs: Runs) -> wr.Report:
    """The report of ``table1`` …, ``figure2`` …, of ``tables``, or of any sweep by the group that its runs have.

    Args:
        runs: fill the measured column of the tables as of now; everything else is live at W&B.
    """
    places = [f"table{n}" for n in TABLES] if sweep == "tables" else [sweep]
    shown = _DETECTORS if sweep == COCO else _ERRORS
    blocks = [block for place in places for block in _section(place, runs, shown)]
    filters = [Metric("Group") == sweep]
    if blocks:
        blocks.append(wr.H2("Of the same sweep, under other protocols than the paper's"))
        filters.append(Tags().notin(_presets([one for place in places for one in _trainings(place)])))
    blocks.append(_grid(sweep, filters, keys.LABEL, {}, shown))
    return wr.Report(entity=entity, project=project, title=f"Gather-Excite, {sweep}", width="fluid", blocks=blocks)


def _presets(trainings: Sequence[Training]) -> list[str]:
    """The tags of their runs: a training that several tables share may have run as the preset of any of them."""
    return list(dict.fromkeys(preset for training in trainings for preset in presets_of(training)))


def write_specification(report: wr.Report, path: Path) -> None:
    """What would be sent to W&B, as JSON."""
    text = report._to_model().model_dump_json(by_alias=True, exclude_none=True)
    with atomic_write(path) as file:
        file.write((json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n").encode())


def _section(place: str, runs: Runs, shown: _Shown) -> Iterator[Any]:
    """The paper's runs of a table or a figure; empty for any other place."""
    trainings = _trainings(place)
    if place.startswith("figure") and trainings:
        yield wr.H2(f"Figure {place[-1]}")
    elif trainings:
        table = report_table(DETECTION if place == COCO else place[-1], runs, complexity=False)
        yield wr.H2("Faster R-CNN on COCO 2014" if place == COCO else table.full_title)
        yield wr.MarkdownBlock(to_markdown(paper_table(table)).rstrip())
    for data in dict.fromkeys(training.config.data.name for training in trainings):
        here = [training for training in trainings if training.config.data.name == data]
        filters = [Tags().isin(_presets(here)), Tags().isin([data])]
        yield _grid(f"{place}, {data}", filters, keys.NETWORK, _colours(here), shown)


def _trainings(place: str) -> Sequence[Training]:
    return trainings_of(place) if place in SWEEPS else ()


def _grid(name: str, filters: list[FilterExpr], group: str, colours: dict[str, str], shown: _Shown) -> wr.PanelGrid:
    """The runs as a table, grouped over seeds, and plots of their metrics."""
    together: dict[str, Any] = {"groupby": wr.Config(group), "groupby_aggfunc": "mean"}
    curve = together | {"x": keys.EPOCH, "title_x": "epoch", "groupby_rangefunc": "minmax", "max_runs_to_show": 100}
    by_network = f"config:{group}.value"
    lines = [(f"{shown.name}, validation, %", shown.validation), shown.training]
    bars = [(f"{shown.name}, last epoch, %", shown.last), (f"{shown.name}, best epoch, %", shown.best)]
    panels: list[Any] = []
    for place, (title, key) in enumerate(lines):
        panels.append(wr.LinePlot(title=title, y=[key], layout=wr.Layout(12 * place, 0, 12, 10), **curve))
    for place, (title, key) in enumerate(bars):
        panels.append(wr.BarPlot(title=title, metrics=[key], layout=wr.Layout(8 * place, 10, 8, 8), **together))
    if keys.MACS in shown.columns:
        panels.append(
            wr.ScatterPlot(
                title=f"{shown.name} against multiply-accumulates",
                x=wr.SummaryMetric(keys.MACS),
                y=wr.SummaryMetric(shown.last),
                layout=wr.Layout(16, 10, 8, 8),
            )
        )
    return wr.PanelGrid(
        runsets=[
            wr.Runset(
                name=name,
                filters=And(*filters),
                groupby=[f"config.{group}"],
                order=[wr.OrderBy(wr.SummaryMetric(shown.last), ascending=shown is _ERRORS)],
                pinned_columns=["run:displayName", by_network],
                visible_columns=[f"summary:{column}" for column in shown.columns],
                lock_columns=True,
            )
        ],
        panels=panels,
        custom_run_colors={
            wr.RunsetGroup(name, (wr.RunsetGroupKey(wr.Config(group), network),)): colour
            for network, colour in colours.items()
        },
    )


def _colours(trainings: Sequence[Training]) -> dict[str, str]:
    """The colours of networks that alone have their variant; W&B chooses those of the others."""
    labels: dict[str, set[str]] = defaultdict(set)
    main = trainings[-1].model  # a table's first row can be another backbone, for reference
    for training in trainings:
        if training.model == main:
            labels[training.variant].add(network_label(training.config))
    return {found.pop(): variant_style(variant)["color"] for variant, found in labels.items() if len(found) == 1}
