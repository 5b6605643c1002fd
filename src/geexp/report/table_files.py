"""A table of the report for the terminal, as Markdown, as CSV and as LaTeX."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from geexp.report.report import COLUMNS, Report, ReportCell, ReportTable
from geexp.report.rows import DETECTION

NOT_RUN = "not run"
COMPLEXITY = {"gflops": "GFLOPs", "mflops": "MFLOPs", "params_m": "#Params, M"}
# Digits behind the point, as printed.
_PLACES = {"gflops": 2, "mflops": 1, "params_m": 1}


def heading(column: str) -> str:
    """Of a column of errors: ``top-1 error, %``, or in Table 5 network and data set."""
    return COLUMNS.get(column, column)


def wide(table: ReportTable) -> pd.DataFrame:
    """A row for each of the paper's, and for each of its columns three: printed, measured, and the difference."""
    lines = []
    for row in table.rows:
        line = {"": row.label}
        for cell in row.cells:
            name = heading(cell.column)
            line |= {f"{name}": _number(cell.printed), f"{name}: measured": measured(cell), f"{name}: Δ": delta(cell)}
        for column in table.complexity_columns:
            line |= {
                COMPLEXITY[column]: f"{row.complexity[column]['printed']:.{_PLACES[column]}f}",
                f"{COMPLEXITY[column]}: computed": computed(row.complexity[column], column),
            }
        lines.append(line)
    return pd.DataFrame(lines)


def tidy(table: ReportTable) -> pd.DataFrame:
    """A row for each number: of the paper's protocol, and of each other one under which its network was trained."""
    lines: list[dict[str, Any]] = []
    for row in table.rows:
        for cell in row.cells:
            line = {"table": table.name, "row": row.label, "column": cell.column, "printed": cell.printed}
            lines.append(line | _statistics(cell.measured) | {"difference": cell.difference, "command": cell.command})
            lines[-1]["protocol"] = "the paper's"
            lines += [
                line | _statistics(other.measured) | {"protocol": differences(other.differences)}
                for other in cell.elsewhere
            ]
    columns = ["table", "row", "column", "printed", "mean", "std", "n", "difference", "protocol", "seeds", "command"]
    return pd.DataFrame(lines, columns=columns)


def write_tables(report: Report, folder: Path) -> list[Path]:
    """``table2.md``, ``table2.csv``, ``table2.tex`` and so on; what they say of other protocols is in the first two."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in report.tables:
        name = table.name if table.name.isalpha() else f"table{table.name}"
        frame = wide(table)
        markdown = frame.to_markdown(index=False, disable_numparse=True)
        texts = {
            "md": f"# {title(table)}\n\n{markdown}\n{_others_in_markdown(table)}",
            "csv": tidy(table).to_csv(index=False),
            "tex": _latex(frame, title(table)),
        }
        for suffix, text in texts.items():
            written.append(folder / f"{name}.{suffix}")
            written[-1].write_text(text, encoding="utf-8")
    return written


def print_table(table: ReportTable, console: Console) -> None:
    """The table on a terminal: printed, measured and the difference of a column side by side in one cell."""
    shown = Table(title=title(table), title_justify="left")
    shown.add_column("", no_wrap=True)
    for column in table.columns:
        shown.add_column(heading(column), justify="right")
    for column in table.complexity_columns:
        shown.add_column(COMPLEXITY[column], justify="right")
    for row in table.rows:
        errors = [f"{_number(c.printed)}  {measured(c)}" + (f"  {delta(c)}" if c.measured else "") for c in row.cells]
        sizes = [
            f"{row.complexity[c]['printed']:.{_PLACES[c]}f}  {computed(row.complexity[c], c)}"
            for c in table.complexity_columns
        ]
        shown.add_row(row.label, *errors, *sizes)
    console.print(shown)
    commands = {cell.command for row in table.rows for cell in row.cells if cell.measured is None}
    if commands:
        console.print(f"{NOT_RUN}: {len(commands)} trainings; {how_to_run(table)}", highlight=False, soft_wrap=True)
    for row in table.rows:
        for other in row.cells[0].elsewhere:
            said = f"{row.label}: {other.measured} under another protocol, {differences(other.differences)}"
            console.print(said, highlight=False, markup=False, soft_wrap=True)


def title(table: ReportTable) -> str:
    return table.title if table.name.isalpha() else f"Table {table.name}: {table.title}"


def how_to_run(table: ReportTable) -> str:
    """The command for the whole table."""
    if table.name == DETECTION:
        return "python -m geexp.train +sweep=coco data.root=/data/coco trainer=gpu"
    root = "data.root=/data" if table.name == "5" else "data.root=/data/imagenet"
    return f"python -m geexp.train +sweep=table{table.name} {root} trainer=gpu"


def measured(cell: ReportCell) -> str:
    return str(cell.measured) if cell.measured is not None else NOT_RUN


def delta(cell: ReportCell) -> str:
    return f"{cell.difference:+.2f}" if cell.difference is not None else ""


def computed(complexity: dict[str, Any], column: str) -> str:
    """With one digit more than is printed, and ≠ where the two do not agree."""
    mark = "" if complexity["agrees"] else " ≠"
    return f"{complexity['computed']:.{_PLACES[column] + 1}f}{mark}"


def differences(found: dict[str, tuple[Any, Any]]) -> str:
    """``schedule.epochs=5 (paper: 300), …``."""
    return ", ".join(f"{key}={ours} (paper: {theirs})" for key, (ours, theirs) in found.items())


def _statistics(found: Any) -> dict[str, Any]:
    if found is None:
        return {"n": 0}
    return {
        "mean": round(found.mean, 6),
        "std": None if found.std is None else round(found.std, 6),
        "n": found.n,
        "seeds": " ".join(str(run.seed) for run in found.runs),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _others_in_markdown(table: ReportTable) -> str:
    lines = [
        f"- {row.label}, {heading(cell.column)}: {other.measured}; {differences(other.differences)}"
        for row in table.rows
        for cell in row.cells
        for other in cell.elsewhere
    ]
    return "\nThe same networks under other protocols:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _latex(frame: pd.DataFrame, caption: str) -> str:
    """For ``\\usepackage{booktabs}``; nothing in it needs more than pdfLaTeX."""
    plain = frame.map(_in_latex)
    plain.columns = [_in_latex(name) for name in frame.columns]
    aligned = "l" + "r" * (len(plain.columns) - 1)
    return str(plain.style.hide(axis="index").to_latex(hrules=True, caption=_in_latex(caption), column_format=aligned))


_LATEX = {"\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}"}
_LATEX |= {"θ": r"$\theta$", "⁻": r"$^{-}$", "⁺": r"$^{+}$", "±": r"$\pm$", "Δ": r"$\Delta$", "≠": r"$\neq$"}


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
