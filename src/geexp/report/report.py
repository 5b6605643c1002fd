"""Everything that a report shows, gathered once; terminal, files and page only print it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geexp.report.analysed_figures import command_for
from geexp.report.claims import Judgement, judge_all
from geexp.report.complexity_report import table_comparison
from geexp.report.measured import Elsewhere, Measured, Runs
from geexp.report.numbers import paper
from geexp.report.rows import DETECTION, rows_of
from geexp.report.runs import LeftOut, Run, read_runs

_DETECTION_TITLE = "Faster R-CNN on COCO 2014, train to val, mAP @[.5:.95]"
COLUMNS = {"top1": "top-1 error, %", "top5": "top-5 error, %", "map": "mAP, %"}


@dataclass(frozen=True)
class ReportCell:
    """A number of the paper, what was measured for it, and what was measured of its network under other protocols."""

    column: str
    printed: float | None
    measured: Measured | None
    elsewhere: tuple[Elsewhere, ...]
    command: str

    @property
    def difference(self) -> float | None:
        """Measured minus printed, in percentage points."""
        if self.measured is None or self.printed is None:
            return None
        return self.measured.mean - self.printed


@dataclass(frozen=True)
class ReportRow:
    """``complexity``: by column what is printed, what is computed, whether they agree, and if not, why."""

    label: str
    cells: tuple[ReportCell, ...]
    complexity: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ReportTable:
    """A table of the paper. ``name`` is its number, or ``detection``."""

    name: str
    title: str
    columns: tuple[str, ...]
    complexity_columns: tuple[str, ...]
    rows: tuple[ReportRow, ...]


@dataclass(frozen=True)
class Report:
    """What was asked for, of the runs at or below ``folder``."""

    folder: Path
    tables: tuple[ReportTable, ...]
    judgements: tuple[Judgement, ...]
    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]


def make_report(folder: Path, tables: Sequence[str]) -> Report:
    """Read the runs and fill the tables: ``1`` … ``6`` and ``detection``.

    ``folder`` may be ``wandb:<entity>/<project>`` as well. One that is not there has no runs.
    """
    runs, left_out = find_runs(folder)
    at_hand = Runs(runs)
    made = tuple(_table(name if name == DETECTION else int(name), at_hand) for name in tables)
    return Report(folder, made, tuple(judge_all(at_hand, runs)), tuple(runs), tuple(left_out))


def find_runs(folder: Path) -> tuple[list[Run], list[LeftOut]]:
    """Those of a folder, or of a project at W&B."""
    if str(folder).startswith("wandb:"):
        from geexp.report.wandb_runs import read_wandb

        return read_wandb(str(folder))
    return read_runs(folder) if folder.is_dir() else ([], [])


def _table(name: int | str, runs: Runs) -> ReportTable:
    rows = rows_of(name)
    counted = table_comparison(int(name)) if rows[0].complexity and name != 6 else [{}] * len(rows)
    made = []
    for row, complexity in zip(rows, counted, strict=True):
        cells = tuple(
            ReportCell(
                cell.column, cell.printed, runs.measured(cell), tuple(runs.elsewhere(cell)), command_for(cell.training)
            )
            for cell in row.cells
        )
        made.append(ReportRow(row.label, cells, {key: complexity[key] for key in row.complexity}))
    columns = tuple(cell.column for cell in rows[0].cells)
    title = _DETECTION_TITLE if name == DETECTION else paper()[f"table{name}"]["title"]
    return ReportTable(str(name), title, columns, tuple(rows[0].complexity), tuple(made))
