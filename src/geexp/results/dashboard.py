"""A report at W&B, as code: a sweep's rows beside the paper's, its runs as a live table, and their curves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.expr import And, FilterExpr, Metric, Tags

from geexp.config.catalog import VARIANTS
from geexp.paper.numbers import paper
from geexp.paper.rows import FIGURES, TABLES, Training, curves_of, rows_of
from geexp.paper.run_labels import network_label
from geexp.records.whole_file import whole_file
from geexp.results.measured import Runs
from geexp.results.style import VARIANT_STYLE
from geexp.training.wandb_content import BEST, EPOCH, ERROR, LABEL, LAST, LAST5, MACS, NETWORK, PARAMS, TRAIN_ERROR

_COLUMNS = [LAST, LAST5, BEST, PARAMS, MACS]


def make_dashboard(sweep: str, *, entity: str, project: str, runs: Runs) -> wr.Report:
    """The report of ``table1`` …, ``figure2`` …, of ``tables``, or of any sweep by the group that its runs have.

    Args:
        runs: fill the tables' column of what was measured, as of now; what else is shown, W&B keeps up to date.
    """
    places = [f"table{n}" for n in TABLES] if sweep == "tables" else [sweep]
    blocks = [block for place in places for block in _section(place, runs)]
    if blocks:
        blocks.append(wr.H2("Of the same sweep, under other protocols than the paper's"))
        filters = [Metric("Group") == sweep, Tags().notin(places)]
    else:
        filters = [Metric("Group") == sweep]
    blocks.append(_grid(sweep, filters, LABEL, {}))
    return wr.Report(entity=entity, project=project, title=f"Gather-Excite, {sweep}", width="fluid", blocks=blocks)


def write_specification(report: wr.Report, path: Path) -> None:
    """What would be sent to W&B, as JSON."""
    text = report._to_model().model_dump_json(by_alias=True, exclude_none=True)
    with whole_file(path) as file:
        file.write((json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n").encode())


def _section(place: str, runs: Runs) -> Iterator[Any]:
    """The runs of a table or a figure, which are the paper's; a place of another kind has none."""
    trainings = _trainings(place)
    if place.startswith("table") and trainings:
        yield wr.H2(f"Table {place[-1]}: {paper()[place]['title']}")
        yield wr.MarkdownBlock(_table(int(place[-1]), runs))
    elif trainings:
        yield wr.H2(f"Figure {place[-1]}")
    for data in dict.fromkeys(training.config.data.name for training in trainings):
        here = [training for training in trainings if training.config.data.name == data]
        filters = [Tags().isin([place]), Tags().isin([data])]
        yield _grid(f"{place}, {data}", filters, NETWORK, _colours(here))


def _trainings(place: str) -> list[Training]:
    if place in {f"table{number}" for number in TABLES}:
        return [cell.training for row in rows_of(int(place[-1])) for cell in row.cells]
    if place in {f"figure{number}" for number in FIGURES}:
        return list(curves_of(int(place[-1])).values())
    return []


def _table(number: int, runs: Runs) -> str:
    """Markdown: by row and column the paper's number, what was measured for it, and the difference."""
    rows = rows_of(number)
    columns = [cell.column for cell in rows[0].cells]
    headings = ["", *(f"{column}, {what}" for column in columns for what in ("paper", "measured", "difference"))]
    lines = [f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    for row in rows:
        words = [row.label]
        for cell in row.cells:
            measured = runs.measured(cell)
            found = ["not run", ""] if measured is None else [str(measured), f"{measured.mean - cell.printed:+.2f}"]
            words += [f"{cell.printed:.2f}", *found]
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def _grid(name: str, filters: list[FilterExpr], group: str, colours: dict[str, str]) -> wr.PanelGrid:
    """The runs as a table, and their errors, seeds together; whose entity and project are the report's."""
    together: dict[str, Any] = {"groupby": wr.Config(group), "groupby_aggfunc": "mean"}
    curve = together | {"x": EPOCH, "title_x": "epoch", "groupby_rangefunc": "minmax", "max_runs_to_show": 100}
    by_network = f"config:{group}.value"
    return wr.PanelGrid(
        runsets=[
            wr.Runset(
                name=name,
                filters=And(*filters),
                groupby=[f"config.{group}"],
                order=[wr.OrderBy(wr.SummaryMetric(LAST), ascending=True)],
                pinned_columns=["run:displayName", by_network],
                visible_columns=[f"summary:{column}" for column in _COLUMNS],
                lock_columns=True,
            )
        ],
        panels=[
            wr.LinePlot(title="top-1 error, validation, %", y=[ERROR], layout=wr.Layout(0, 0, 12, 10), **curve),
            wr.LinePlot(title="top-1 error, training, %", y=[TRAIN_ERROR], layout=wr.Layout(12, 0, 12, 10), **curve),
            wr.BarPlot(title="top-1 error, last epoch, %", metrics=[LAST], layout=wr.Layout(0, 10, 8, 8), **together),
            wr.BarPlot(title="top-1 error, best epoch, %", metrics=[BEST], layout=wr.Layout(8, 10, 8, 8), **together),
            wr.ScatterPlot(
                title="top-1 error against multiply-accumulates",
                x=wr.SummaryMetric(MACS),
                y=wr.SummaryMetric(LAST),
                layout=wr.Layout(16, 10, 8, 8),
            ),
        ],
        custom_run_colors={
            wr.RunsetGroup(name, (wr.RunsetGroupKey(wr.Config(group), network),)): colour
            for network, colour in colours.items()
        },
    )


def _colours(trainings: list[Training]) -> dict[str, str]:
    """Of the networks that alone have their variant; the others get W&B's own colours."""
    labels: dict[str, set[str]] = {variant: set() for variant in ("none", *VARIANTS)}
    main = trainings[-1].model  # a table's first row can be another backbone, for reference
    for training in trainings:
        if training.model == main:
            labels[training.ge.variant].add(network_label(training.config))
    return {found.pop(): VARIANT_STYLE[variant]["color"] for variant, found in labels.items() if len(found) == 1}
