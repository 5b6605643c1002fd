"""Everything that a report shows, gathered once; terminal, files and page only render it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geexp.report.claims import Judgement, judge_all
from geexp.report.complexity_report import table_comparison
from geexp.report.measured import Measured, OtherProtocol, Runs
from geexp.report.rows import DETECTION, Cell, Row, paper, rows_of
from geexp.report.runs import FinishedRun, LeftOut, read_runs

_DETECTION_TITLE = "Faster R-CNN on COCO 2014, train to val, mAP @[.5:.95]"


@dataclass(frozen=True)
class ReportCell:
    """A number of the paper, what was measured for it, and what was measured of its network under other protocols."""

    column: str
    printed: float
    measured: Measured | None
    elsewhere: tuple[OtherProtocol, ...]
    command: str

    @property
    def difference(self) -> float | None:
        """Measured minus printed, in percentage points."""
        return None if self.measured is None else self.measured.mean - self.printed

    @property
    def word(self) -> str:
        """What the difference means: ``better``, ``worse``, ``equal``, or nothing."""
        if self.difference is None:
            return ""
        if abs(self.difference) < 0.005:
            return "equal"
        return "better" if (self.difference > 0) == (self.column == "map") else "worse"


@dataclass(frozen=True)
class ReportRow:
    """``complexity``: by column what is printed, what is computed, whether they agree, and if not, why."""

    label: str
    variant: str
    cells: dict[str, ReportCell]
    complexity: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ReportTable:
    """A table of the paper. ``name`` is its number, or ``detection``."""

    name: str
    title: str
    columns: tuple[str, ...]
    complexity_columns: tuple[str, ...]
    rows: tuple[ReportRow, ...]

    @property
    def place(self) -> str:
        """``Table 2``, or ``Detection``."""
        return f"Table {self.name}" if self.name.isdigit() else self.name.capitalize()

    @property
    def full_title(self) -> str:
        return f"{self.place}: {self.title}" if self.name.isdigit() else self.title

    @property
    def cells(self) -> list[ReportCell]:
        return [cell for row in self.rows for cell in row.cells.values()]


@dataclass(frozen=True)
class Report:
    """What was asked for, of the runs at or below ``folder``."""

    folder: Path
    tables: tuple[ReportTable, ...]
    judgements: tuple[Judgement, ...]
    runs: tuple[FinishedRun, ...]
    left_out: tuple[LeftOut, ...]


def make_report(folder: Path, tables: Sequence[str]) -> Report:
    """Read the runs and fill the tables: ``1`` … ``6`` and ``detection``.

    ``folder`` may be ``wandb:<entity>/<project>`` as well. One that does not exist has no runs.
    """
    runs, left_out = _read(folder)
    at_hand = Runs(runs)
    made = tuple(report_table(name, at_hand) for name in tables)
    return Report(folder, made, tuple(judge_all(at_hand, runs)), tuple(runs), tuple(left_out))


def _read(folder: Path) -> tuple[list[FinishedRun], list[LeftOut]]:
    if str(folder).startswith("wandb:"):
        from geexp.report.wandb_runs import read_wandb

        return read_wandb(str(folder))
    return read_runs(folder) if folder.is_dir() else ([], [])


def report_table(name: str, runs: Runs, *, complexity: bool = True) -> ReportTable:
    """A table with what these runs measured, and with the computed complexity where the paper prints one."""
    rows = rows_of(name if name == DETECTION else int(name))
    columns = tuple(rows[0].complexity) if complexity else ()
    counted = table_comparison(int(name)) if columns else [{}] * len(rows)
    made = tuple(
        ReportRow(row.label, row.training.variant, _cells(row, runs), {key: found[key] for key in columns})
        for row, found in zip(rows, counted, strict=True)
    )
    title = _DETECTION_TITLE if name == DETECTION else paper()[f"table{name}"]["title"]
    return ReportTable(name, title, tuple(cell.column for cell in rows[0].cells), columns, made)


def _cells(row: Row, runs: Runs) -> dict[str, ReportCell]:
    def made(cell: Cell) -> ReportCell:
        elsewhere = tuple(runs.elsewhere(cell))
        return ReportCell(cell.column, cell.printed, runs.measured(cell), elsewhere, cell.training.command)

    return {cell.column: made(cell) for cell in row.cells}
