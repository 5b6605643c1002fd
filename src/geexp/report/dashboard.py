"""A report at W&B, as code: a sweep's rows beside the paper's, its runs as a live table, and their curves."""

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
from geexp.report.rows import DETECTION, FIGURES, TABLES, Training, curves_of, presets_of, rows_of
from geexp.report.tables import to_markdown
from geexp.runs.atomic_write import atomic_write
from geexp.runs.identity import network_label
from geexp.runs.metrics import AP
from geexp.training.wandb_content import (
    BEST,
    BEST_AP,
    EPOCH,
    ERROR,
    LABEL,
    LAST,
    LAST5,
    LAST_AP,
    LAST_AP50,
    LOSS,
    MACS,
    NETWORK,
    PARAMS,
    TRAIN_ERROR,
)

COCO = "coco"  # the sweep of the detection experiment


@dataclass(frozen=True)
class _Shown:
    """What runs are judged by, as W&B names it: of every epoch and of the summary."""

    name: str
    validation: str
    training: tuple[str, str]  # title and key
    last: str
    best: str
    columns: tuple[str, ...]


_ERRORS = _Shown(
    "top-1 error", ERROR, ("top-1 error, training, %", TRAIN_ERROR), LAST, BEST, (LAST, LAST5, BEST, PARAMS, MACS)
)
_DETECTORS = _Shown("mAP", AP.key, ("loss, training", LOSS), LAST_AP, BEST_AP, (LAST_AP, LAST_AP50, BEST_AP, PARAMS))


def make_dashboard(sweep: str, *, entity: str, project: str, runs: Runs) -> wr.Report:
    """The report of ``table1`` …, ``figure2`` …, of ``tables``, or of any sweep by the group that its runs have.

    Args:
        runs: fill the tables' columns of what was measured, as of now; W&B keeps everything else up to date.
    """
    places = [f"table{n}" for n in TABLES] if sweep == "tables" else [sweep]
    blocks = [block for place in places for block in _section(place, runs)]
    filters = [Metric("Group") == sweep]
    if blocks:
        blocks.append(wr.H2("Of the same sweep, under other protocols than the paper's"))
        filters.append(Tags().notin(_presets([one for place in places for one in _trainings(place)])))
    blocks.append(_grid(sweep, filters, LABEL, {}, _shown_of(sweep)))
    return wr.Report(entity=entity, project=project, title=f"Gather-Excite, {sweep}", width="fluid", blocks=blocks)


def _presets(trainings: Sequence[Training]) -> list[str]:
    """The tags of their runs: a training that several tables share may have run as the preset of any of them."""
    return list(dict.fromkeys(preset for training in trainings for preset in presets_of(training)))


def write_specification(report: wr.Report, path: Path) -> None:
    """What would be sent to W&B, as JSON."""
    text = report._to_model().model_dump_json(by_alias=True, exclude_none=True)
    with atomic_write(path) as file:
        file.write((json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n").encode())


def _section(place: str, runs: Runs) -> Iterator[Any]:
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
        yield _grid(f"{place}, {data}", filters, NETWORK, _colours(here), _shown_of(place))


def _shown_of(place: str) -> _Shown:
    return _DETECTORS if place == COCO else _ERRORS


def _trainings(place: str) -> list[Training]:
    if place in {f"table{number}" for number in TABLES}:
        return [cell.training for row in rows_of(int(place[-1])) for cell in row.cells]
    if place == COCO:
        return [row.training for row in rows_of(DETECTION)]
    if place in {f"figure{number}" for number in FIGURES}:
        return list(curves_of(int(place[-1])).values())
    return []


def _grid(name: str, filters: list[FilterExpr], group: str, colours: dict[str, str], shown: _Shown) -> wr.PanelGrid:
    """The runs as a table, and their figures, with seeds together, of the report's entity and project."""
    together: dict[str, Any] = {"groupby": wr.Config(group), "groupby_aggfunc": "mean"}
    curve = together | {"x": EPOCH, "title_x": "epoch", "groupby_rangefunc": "minmax", "max_runs_to_show": 100}
    by_network = f"config:{group}.value"
    training, key = shown.training
    panels: list[Any] = [
        wr.LinePlot(
            title=f"{shown.name}, validation, %", y=[shown.validation], layout=wr.Layout(0, 0, 12, 10), **curve
        ),
        wr.LinePlot(title=training, y=[key], layout=wr.Layout(12, 0, 12, 10), **curve),
        wr.BarPlot(
            title=f"{shown.name}, last epoch, %", metrics=[shown.last], layout=wr.Layout(0, 10, 8, 8), **together
        ),
        wr.BarPlot(
            title=f"{shown.name}, best epoch, %", metrics=[shown.best], layout=wr.Layout(8, 10, 8, 8), **together
        ),
    ]
    if MACS in shown.columns:
        panels.append(
            wr.ScatterPlot(
                title=f"{shown.name} against multiply-accumulates",
                x=wr.SummaryMetric(MACS),
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


def _colours(trainings: list[Training]) -> dict[str, str]:
    """Of the networks that alone have their variant; the others get W&B's own colours."""
    labels: dict[str, set[str]] = defaultdict(set)
    main = trainings[-1].model  # a table's first row can be another backbone, for reference
    for training in trainings:
        if training.model == main:
            labels[training.variant].add(network_label(training.config))
    return {found.pop(): variant_style(variant)["color"] for variant, found in labels.items() if len(found) == 1}
