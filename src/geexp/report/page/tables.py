"""The paper's tables and statements as the template prints them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from geexp.report.claims import CANNOT_TELL, CONTRADICTS, SUPPORTS, Judgement
from geexp.report.measured import Measured
from geexp.report.page import words
from geexp.report.report import COLUMNS, Report, ReportCell, ReportTable
from geexp.report.rows import DETECTION, TABLES, rows_of

# What the page shows of one table or statement; of what is beyond, it says how much that is.
OTHER_PROTOCOLS = 40
SETTINGS = 12

SIGNS = {SUPPORTS: "✓", CONTRADICTS: "✗", CANNOT_TELL: "?"}
_COMPLEXITY = {"gflops": ("GFLOPs", 2), "mflops": ("MFLOPs", 1), "params_m": ("#Params, M", 1)}
_NAMES = {
    "resnet110": "ResNet-110", "resnet164": "ResNet-164", "wrn16_8": "WRN-16-8",
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
}  # fmt: skip


def filled_tables(report: Report) -> dict[Path, tuple[str, ...]]:
    """By a run's folder, the names of the tables in which it fills a row."""
    found: dict[Path, dict[str, None]] = {}
    for table in report.tables:
        for row in table.rows:
            for cell in row.cells:
                for run in cell.measured.runs if cell.measured else ():
                    found.setdefault(run.folder, {})[table.name] = None
    return {folder: tuple(names) for folder, names in found.items()}


def table_of(table: ReportTable) -> dict[str, Any]:
    # Of a table that is none of the paper's, or of another shape, no row has a mark.
    places = {str(number): number for number in TABLES} | {DETECTION: DETECTION}
    known = rows_of(places[table.name]) if table.name in places else ()
    variants = {row.label: row.cells[0].training.ge["variant"] for row in known}
    others = list(_others(table))
    cells = [cell for row in table.rows for cell in row.cells]
    return {
        "id": f"table-{table.name}" if table.name.isdigit() else table.name,
        "name": f"Table {table.name}" if table.name.isdigit() else table.name.capitalize(),
        "title": table.title,
        "shape": "compact" if len(table.columns) > 2 else "" if table.complexity_columns else "narrow",
        "places": 1 if table.columns == ("map",) else 2,
        "columns": [_heading(column) for column in table.columns],
        "complexity": [_COMPLEXITY.get(column, (column, 2)) for column in table.complexity_columns],
        "rows": [
            {
                "label": row.label,
                "variant": variants.get(row.label),
                "cells": [(cell, _word(cell)) for cell in row.cells],
                "complexity": [row.complexity.get(column) for column in table.complexity_columns],
            }
            for row in table.rows
        ],
        "commands": list(_commands(table)),
        "notes": list(_notes(table)),
        "others": others[:OTHER_PROTOCOLS],
        "others_left": max(0, len(others) - OTHER_PROTOCOLS),
        "measured": sum(cell.measured is not None for cell in cells),
        "cells": len(cells),
    }


def _heading(column: str) -> str:
    return COLUMNS.get(column) or " ".join(_NAMES.get(word, word) for word in column.split())


def _word(cell: ReportCell) -> str:
    """What a difference means, in a word."""
    if cell.difference is None:
        return ""
    if abs(cell.difference) < 0.005:
        return "equal"
    return "better" if (cell.difference > 0) == (cell.column == "map") else "worse"


def _commands(table: ReportTable) -> Iterator[tuple[str, str]]:
    """What trains the missing, by row, or by row and column where each has its own."""
    for row in table.rows:
        missing = [cell for cell in row.cells if cell.measured is None]
        shared = len({cell.command for cell in row.cells}) == 1
        for cell in missing[:1] if shared else missing:
            yield (row.label if shared else f"{row.label}, {_heading(cell.column)}"), cell.command


def _notes(table: ReportTable) -> Iterator[tuple[str, str]]:
    """Where the complexity that is computed differs from the one that is printed, and why."""
    for row in table.rows:
        for column, values in row.complexity.items():
            if not values["agrees"]:
                name, places = _COMPLEXITY.get(column, (column, 2))
                difference = values["computed"] - values["printed"]
                yield (
                    f"{row.label}, {name}",
                    f"{words.signed(difference, places + 1)}; {values['reason'] or 'not explained'}",
                )


def _others(table: ReportTable) -> Iterator[dict[str, Any]]:
    """The runs of a row's network under other protocols: those together that differ in the same things."""
    for row in table.rows:
        found: dict[str, dict[str, Any]] = {}
        for place, cell in enumerate(row.cells):
            for group in cell.elsewhere:
                key = str(([run.folder for run in group.measured.runs], group.differences))
                columns: list[Measured | None] = [None] * len(row.cells)
                entry = {"label": row.label, "n": group.measured.n, "columns": columns, "what": group.differences}
                found.setdefault(key, entry)["columns"][place] = group.measured
        yield from found.values()


def statements_of(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """By statement what each setting says of it: the paper's first, then those that can tell."""
    by_text: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        by_text.setdefault(judgement.claim.text, []).append(judgement)
    found = []
    for text, (first, *others) in by_text.items():
        others.sort(key=lambda judgement: (judgement.verdict == CANNOT_TELL, judgement.p is None))
        beyond = Counter(judgement.verdict for judgement in others[SETTINGS - 1 :])
        found.append(
            {
                "text": text,
                "where": first.claim.where,
                "judgements": [first, *others[: SETTINGS - 1]],
                "beyond": [f"{count} {verdict}" for verdict, count in beyond.items()],
            }
        )
    return found
