"""A report on the terminal, and as one JSON document."""

from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from geexp.report.claims import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Judgement
from geexp.report.measured import Measured
from geexp.report.paper_tables import differences, print_table
from geexp.report.report import Report, ReportCell
from geexp.report.tables import to_terminal

# With more runs the terminal shows no comparison of single runs.
FIT_ON_A_TERMINAL = 40
_COLOURS = {SUPPORTED: "green", CONTRADICTED: "red", INCONCLUSIVE: ""}


def print_summary(report: Report, console: Console, *, every_table: bool) -> None:
    """The tables with results in any protocol (or all), differences from baselines, verdicts, and folders left out."""
    if len(report.runs) > FIT_ON_A_TERMINAL:
        console.print(f"{len(report.runs):,} finished runs in {report.folder}; the page has all of them")
    empty = 0
    for table in report.tables:
        if every_table or any(cell.measured or cell.elsewhere for cell in table.cells):
            print_table(table, console)
        else:
            empty += 1
    if empty:
        console.print(f"{empty} of the paper's tables have no run here yet; the page has the command of each row")
    for comparison in report.comparisons:
        if comparison.repeated:
            console.print(to_terminal(comparison.brief))
    judged = [judgement for judgement in report.judgements if judgement.p is not None]
    if judged:
        console.print(_judgements(judged))
    for left in report.left_out:
        console.print(f"left out: {left.folder}: {left.reason}", highlight=False, soft_wrap=True)


def _judgements(judged: list[Judgement]) -> RichTable:
    table = RichTable(title="The paper's claims, tested on the runs", title_justify="left")
    for heading in ("claim", "where", "runs of", "verdict", "p"):
        table.add_column(heading)
    for one in judged:
        verdict = Text.assemble((one.verdict, _COLOURS[one.verdict]), f": {one.reason}")
        table.add_row(one.claim.text, one.claim.where, one.setting, verdict, f"{one.p:.2g}")
    return table


def as_dict(report: Report) -> dict[str, Any]:
    """The report in plain types."""
    return {
        "runs": [str(run.folder) for run in report.runs],
        "left_out": [{"folder": str(left.folder), "reason": left.reason} for left in report.left_out],
        "tables": [
            {
                "name": table.name,
                "title": table.title,
                "rows": [
                    {"label": row.label, "cells": list(map(_cell, row.cells.values())), "complexity": row.complexity}
                    for row in table.rows
                ],
            }
            for table in report.tables
        ],
        "differences": [row for comparison in report.comparisons for row in comparison.rows],
        "statements": [
            {
                "statement": one.claim.text,
                "quote": one.claim.quote,
                "where": one.claim.where,
                "runs_of": one.setting,
                "verdict": one.verdict,
                "reason": one.reason,
                "p": one.p,
                "test": one.test,
            }
            for one in report.judgements
        ],
    }


def _cell(cell: ReportCell) -> dict[str, Any]:
    return {
        "column": cell.column,
        "printed": cell.printed,
        "measured": _measured(cell.measured),
        "difference": cell.difference,
        "other_protocols": [
            _measured(other.measured) | {"differs": differences(other.differences)} for other in cell.elsewhere
        ],
        "command": cell.command,
    }


def _measured(measured: Measured | None) -> dict[str, Any]:
    if measured is None:
        return {"n": 0}
    seeds = [run.seed for run in measured.runs]
    return {
        "n": measured.n,
        "mean": measured.mean,
        "std": measured.std,
        "values": measured.values,
        "seeds": seeds,
        "images_per_batchnorm": measured.images_per_batchnorm,
    }
