"""The paper's tables with printed and measured numbers: columns, files, and output on a terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console

from geexp.report.measured import Measured
from geexp.report.report import COMPLEXITY, Report, ReportCell, ReportRow, ReportTable
from geexp.report.rows import DETECTION
from geexp.report.tables import Column, Table, of_dicts, to_csv, to_latex, to_markdown, to_terminal

NOT_RUN = "not run"
_NAMES = {
    "top1": "top-1 error, %", "top5": "top-5 error, %", "map": "mAP, %",
    "resnet110": "ResNet-110", "resnet164": "ResNet-164", "wrn16_8": "WRN-16-8",
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
}  # fmt: skip
LABEL = Column[ReportRow]("Network", lambda row: row.label, key="network", right=False, css="label")


def heading(column: str) -> str:
    """``top-1 error, %``, or for Table 5 network and data set."""
    return " ".join(_NAMES.get(word, word) for word in column.split())


def paper_table(table: ReportTable) -> Table[ReportRow]:
    """Printed and measured numbers with their difference, then printed and computed complexity."""
    columns = [LABEL]
    for name in table.columns:
        columns += _of_errors(name)
    for name in table.complexity_columns:
        columns += complexity_columns(name)
    return Table(columns, table.rows, title=table.full_title)


def _of_errors(name: str) -> list[Column[ReportRow]]:
    def cell(row: ReportRow) -> ReportCell:
        return row.cells[name]

    def measured(row: ReportRow) -> str:
        return NOT_RUN if cell(row).measured is None else str(cell(row).measured)

    def mean(row: ReportRow) -> float | None:
        found = cell(row).measured
        return None if found is None else found.mean

    def difference(row: ReportRow) -> str:
        found = cell(row).difference
        return "" if found is None else f"{found:+.2f}"

    places, group = (1 if name == "map" else 2), heading(name)
    return [
        Column(
            "paper", lambda row: f"{cell(row).printed:.{places}f}", lambda row: cell(row).printed,
            key=f"{name}.paper", group=group, css="first",
        ),
        Column("measured", measured, mean, key=f"{name}.measured", group=group),
        Column("difference", difference, lambda row: cell(row).difference, key=f"{name}.difference", group=group),
    ]  # fmt: skip


def complexity_columns(name: str) -> list[Column[ReportRow]]:
    group, places = COMPLEXITY[name]

    def computed(row: ReportRow) -> str:
        found = row.complexity[name]
        return f"{found['computed']:.{places + 1}f}{'' if found['agrees'] else ' ≠'}"

    return [
        Column(
            "paper", lambda row: f"{row.complexity[name]['printed']:.{places}f}",
            lambda row: row.complexity[name]["printed"], key=f"{name}.paper", group=group, css="first",
        ),
        Column(
            "computed", computed, lambda row: row.complexity[name]["computed"],
            key=f"{name}.computed", group=group, highlight=lambda row: not row.complexity[name]["agrees"],
        ),
    ]  # fmt: skip


def complexity_notes(table: ReportTable) -> list[tuple[str, str]]:
    """Rows and columns whose computed complexity differs from the printed one, with the difference and its reason."""
    notes = []
    for row in table.rows:
        for column, found in row.complexity.items():
            if not found["agrees"]:
                name, places = COMPLEXITY[column]
                difference = f"{found['computed'] - found['printed']:+.{places + 1}f}"
                notes.append((f"{row.label}, {name}", f"{difference}; {found['reason'] or 'not explained'}"))
    return notes


def numbers(table: ReportTable) -> Table[dict[str, Any]]:
    """A row for each number in the paper's protocol, and one for each other protocol of the same network."""
    keys = ["table", "row", "column", "printed", "mean", "std", "n", "difference", "protocol", "seeds", "command"]
    rows: list[dict[str, Any]] = []
    for row in table.rows:
        for cell in row.cells.values():
            start = {"table": table.name, "row": row.label, "column": cell.column, "printed": cell.printed}
            ours = {"difference": cell.difference, "command": cell.command, "protocol": "the paper's"}
            rows.append(start | _statistics(cell.measured) | ours)
            rows += [
                start | _statistics(other.measured) | {"protocol": differences(other.differences)}
                for other in cell.elsewhere
            ]
    return of_dicts(keys, rows)


def _statistics(found: Measured | None) -> dict[str, Any]:
    if found is None:
        return {"n": 0}
    std = None if found.std is None else round(found.std, 6)
    seeds = " ".join(str(run.seed) for run in found.runs)
    return {"mean": round(found.mean, 6), "std": std, "n": found.n, "seeds": seeds}


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Write ``table2.md``, ``table2.csv``, ``table2.tex`` and so on; the first two include other protocols."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in report.tables:
        name = table.name if table.name.isalpha() else f"table{table.name}"
        shown = paper_table(table)
        texts = {
            "md": f"# {table.full_title}\n\n{to_markdown(shown)}{_others(table)}",
            "csv": to_csv(numbers(table)),
            "tex": to_latex(shown),
        }
        for suffix, text in texts.items():
            written.append(folder / f"{name}.{suffix}")
            written[-1].write_text(text, encoding="utf-8", errors="backslashreplace")
    return written


def _others(table: ReportTable) -> str:
    lines = [
        f"- {row.label}, {heading(cell.column)}: {other.measured}; {differences(other.differences)}"
        for row in table.rows
        for cell in row.cells.values()
        for other in cell.elsewhere
    ]
    return "\nThe same networks under other protocols:\n\n" + "\n".join(lines) + "\n" if lines else ""


def print_table(table: ReportTable, console: Console) -> None:
    """The table, the command for missing runs, and results under other protocols."""
    console.print(to_terminal(paper_table(table)))
    commands = {cell.command for cell in table.cells if cell.measured is None}
    if commands:
        console.print(f"{NOT_RUN}: {len(commands)} trainings; {how_to_run(table)}", highlight=False, soft_wrap=True)
    for row in table.rows:
        for other in row.cells[table.columns[0]].elsewhere:
            text = f"{row.label}: {other.measured} under another protocol, {differences(other.differences)}"
            console.print(text, highlight=False, soft_wrap=True)


def how_to_run(table: ReportTable) -> str:
    """The command for the whole table."""
    if table.name == DETECTION:
        return "python -m geexp.train +sweep=coco data.root=/data/coco trainer=gpu"
    root = "data.root=/data" if table.name == "5" else "data.root=/data/imagenet"
    return f"python -m geexp.train +sweep=table{table.name} {root} trainer=gpu"


def differences(found: dict[str, tuple[Any, Any]]) -> str:
    """``schedule.epochs=5 (paper: 300), …``."""
    return ", ".join(f"{key}={ours} (paper: {theirs})" for key, (ours, theirs) in found.items())
