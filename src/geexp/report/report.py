"""The content of a report; terminal, files and page only render it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from geexp.backbones.complexity import Part
from geexp.data.parallel import with_bar
from geexp.report.claims import Judgement, judge_all
from geexp.report.differences import Comparison, compare
from geexp.report.measured import Measured, OtherProtocol, Runs
from geexp.report.rows import DETECTION, Row, paper, preset_config, presets_of, rows_of
from geexp.report.runs import FinishedRun, LeftOut, read_runs
from geexp.training.network import count_network

_DETECTION_TITLE = "Faster R-CNN on COCO 2014, train to val, mAP @[.5:.95]"
COMPLEXITY = {"gflops": ("GFLOPs", 2), "mflops": ("MFLOPs", 1), "params_m": ("#Params, M", 1)}  # and printed decimals
# Printed values that no reading of the paper reproduces, by table, row and column.
KNOWN_DIFFERENCES = {
    ("4", "GE-θ (E2)", "mflops"): "printed as if one unit per stage held the operator; #Params needs all 16",
    ("4", "GE-θ (E4)", "mflops"): "as for E2",
    ("4", "GE-θ (E8)", "mflops"): "as for E2",
    ("4", "SE", "params_m"): "two 1x1 convolutions with biases in all 16 units give more than is printed",
}


@dataclass(frozen=True)
class ReportCell:
    """A printed number, its measurement, and those of the same network under other protocols."""

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
        """The difference in a word: ``better``, ``worse``, ``equal``, or nothing if not run."""
        if self.difference is None:
            return ""
        if abs(self.difference) < 0.005:
            return "equal"
        return "better" if (self.difference > 0) == (self.column == "map") else "worse"


@dataclass(frozen=True)
class ReportRow:
    """``complexity``: by column ``printed``, ``computed``, ``agrees`` and the ``reason`` of a known difference."""

    label: str
    variant: str
    cells: dict[str, ReportCell]
    complexity: dict[str, dict[str, Any]]
    learnable_params: int


@dataclass(frozen=True)
class ReportTable:
    """A table of the paper. ``name`` is its number, or ``detection``."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[ReportRow, ...]

    @property
    def place(self) -> str:
        """``Table 2``, or ``Detection``."""
        return f"Table {self.name}" if self.name.isdigit() else self.name.capitalize()

    @property
    def full_title(self) -> str:
        return f"{self.place}: {self.title}" if self.name.isdigit() else self.title

    @property
    def complexity_columns(self) -> list[str]:
        return list(self.rows[0].complexity)

    @property
    def cells(self) -> list[ReportCell]:
        return [cell for row in self.rows for cell in row.cells.values()]


@dataclass(frozen=True)
class Report:
    """The requested tables, the verdicts, differences from baselines, and the runs at or below ``folder``."""

    folder: Path
    tables: tuple[ReportTable, ...]
    judgements: tuple[Judgement, ...]
    comparisons: tuple[Comparison, ...]
    runs: tuple[FinishedRun, ...]
    left_out: tuple[LeftOut, ...]


def make_report(folder: Path, tables: Sequence[str]) -> Report:
    """Read the runs and fill the tables: ``1`` … ``6`` and ``detection``.

    ``folder`` may also be ``wandb:<entity>/<project>``. A folder that does not exist has no runs.
    """
    runs, left_out = _read(folder)
    at_hand = Runs(runs)
    made = tuple(report_table(name, at_hand) for name in tables)
    return Report(folder, made, tuple(judge_all(at_hand, runs)), compare(runs), tuple(runs), tuple(left_out))


def _read(folder: Path) -> tuple[list[FinishedRun], list[LeftOut]]:
    if str(folder).startswith("wandb:"):
        from geexp.report.wandb_runs import read_wandb

        return read_wandb(str(folder))
    return read_runs(folder) if folder.is_dir() else ([], [])


def report_table(name: str, runs: Runs, *, complexity: bool = True) -> ReportTable:
    """A table with what these runs measured, and with the computed complexity where the paper prints one."""
    rows = rows_of(name if name == DETECTION else int(name))
    title = _DETECTION_TITLE if name == DETECTION else paper()[f"table{name}"]["title"]
    made = []
    for row in with_bar(rows, "counting the networks"):
        counted = _counted(presets_of(row.training)[0]) if complexity and row.complexity else Part()
        compared = _compared(name, row, counted) if complexity else {}
        made.append(ReportRow(row.label, row.training.variant, _cells(row, runs), compared, counted.params))
    return ReportTable(name, title, tuple(cell.column for cell in rows[0].cells), tuple(made))


@cache
def _counted(preset: str) -> Part:
    """The complexity of a preset's network for one image of the size it is made for."""
    config = preset_config(preset)
    size, classes = config.model.home_size, config.model.home_classes
    return count_network(config.model, config.ge, image_size=size, num_classes=classes, in_channels=3).total


def _compared(table: str, row: Row, counted: Part) -> dict[str, dict[str, Any]]:
    """Multiply-accumulates agree if they are equal when rounded as printed, parameters if within 0.1 M."""
    compared = {}
    for column, printed in row.complexity.items():
        if column == "params_m":
            computed = counted.params_with_bn_statistics / 1e6
            agrees = abs(computed - printed) < 0.1  # the paper does not always round
        else:
            computed = counted.macs / (1e6 if column == "mflops" else 1e9)
            agrees = round(computed, COMPLEXITY[column][1]) == printed
        reason = KNOWN_DIFFERENCES.get((table, row.label, column))
        compared[column] = {"printed": printed, "computed": computed, "agrees": agrees, "reason": reason}
    return compared


def _cells(row: Row, runs: Runs) -> dict[str, ReportCell]:
    cells = {}
    for cell in row.cells:
        measured = runs.of_training(cell.training, cell.metric)
        elsewhere = tuple(runs.elsewhere(cell))
        cells[cell.column] = ReportCell(cell.column, cell.printed, measured, elsewhere, cell.training.command)
    return cells
