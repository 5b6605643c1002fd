"""What a benchmark found, as JSON and as tables."""

import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from geexp.benchmarks.rows import Column, Comparison, Row, Spread, Verdict, figure, ratio
from geexp.config.benchmark import Settings
from geexp.data.reading import processors
from geexp.runs.environment import environment


def as_document(found: Comparison, what: str, settings: Settings) -> dict[str, Any]:
    """With all that is needed to know what the numbers are worth: where, when and how they came about."""
    return {
        "what": what,
        "title": found.title,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "geexp.benchmark", *sys.argv[1:]]),
        "config": asdict(settings),
        "environment": {**environment(), "processors": processors()},
        "remarks": found.remarks,
        "rows": [_row_data(row) for row in found.rows],
        "targets": [asdict(verdict) for verdict in found.verdicts],
    }


def _row_data(row: Row) -> dict[str, Any]:
    seconds = {name: Spread.of(values)._asdict() for name, values in row.times.items()}
    return {"case": row.case, "contender": row.contender, "seconds": seconds, **row.amounts}


def print_tables(found: Comparison, console: Console) -> None:
    table = Table(title=found.title)
    table.add_column("", no_wrap=True)
    for column in found.columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for case, rows in groupby(found.rows, key=lambda row: row.case):
        contenders = {row.contender: row for row in rows}
        table.add_section()
        table.add_row(f"[bold]{case}[/]")
        for name, row in contenders.items():
            table.add_row(name, *(_cell(row, contenders, column) for column in found.columns))
    console.print(table)
    for remark in found.remarks:
        console.print(remark, style="dim", highlight=False)
    if found.verdicts:
        console.print(_targets(found.verdicts))


def _cell(row: Row, contenders: dict[str, Row], column: Column) -> str:
    other = next((contenders[name] for name in column.against if name in contenders), None)
    if column.against and other is None:
        return ""
    spread = figure(row, column.figure) if other is None else ratio(row, other, column.figure)
    if spread is None:
        return "-"
    median, low, high = (f"{value * column.scale:.{column.digits}f}" for value in spread)
    return median if low == high or other is None else f"{median} ({low}-{high})"


def _targets(verdicts: list[Verdict]) -> Table:
    table = Table(title="What is demanded")
    for heading in ("case", "of", ""):
        table.add_column(heading)
    for heading in ("demanded", "measured", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in verdicts:
        outcome = "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.case, row.contender, row.name, f"{row.sign} {row.bound:g}", in_words(row), outcome)
    return table


def in_words(row: Verdict) -> str:
    """The measured value, with the range of the rounds where it varies."""
    return f"{row.value:.3f}" + (f" ({row.low:.2f}-{row.high:.2f})" if row.low != row.high else "")
