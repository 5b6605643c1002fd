"""Figures 3, 5, 7 and 8: measurements of ``python -m geexp.analyze`` on networks trained as in the paper."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from geexp.analysis.analyse import FOLDER, Analysis, Network, read_analysis
from geexp.config.errors import DataError
from geexp.report.measured import Runs
from geexp.report.rows import Training, differing, rows_of


@dataclass(frozen=True)
class AnalysedFigure:
    """The analysis that a figure shows, and the labels of its networks in Table 2, the main one first."""

    title: str
    analysis: str
    labels: tuple[str, ...]

    @property
    def trainings(self) -> tuple[Training, ...]:
        by_label = {row.label: row.training for row in rows_of(2)}
        return tuple(by_label[label] for label in self.labels)


_BASELINE = "ResNet-50 (Baseline)"
ANALYSED = {
    3: AnalysedFigure("class selectivity of ResNet-50 and GE-θ", "selectivity", ("GE-θ", _BASELINE)),
    5: AnalysedFigure("feature importance in GE-θ", "pruning", ("GE-θ", _BASELINE)),
    7: AnalysedFigure("class selectivity of ResNet-50, GE-θ⁻ and SE", "selectivity", ("GE-θ⁻", "SE", _BASELINE)),
    8: AnalysedFigure("feature importance in SE", "pruning", ("SE", _BASELINE)),
}


def draw_analysed(number: int, runs: Runs, path: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The picture's files, none if nothing was measured, and the commands for the missing measurements."""
    figure = ANALYSED[number]
    found = [(training, _found(figure, training, runs)) for training in figure.trainings]
    missing = tuple(_command(figure, training, runs) for training, one in found if one is None)
    measured = [one for _, one in found if one is not None]
    if not measured:
        return (), missing
    kind = import_module(f"geexp.analysis.{figure.analysis}")  # only now: it imports torch
    return kind.draw(_joined(measured), path, f"Figure {number}: {figure.title}"), missing


def _found(figure: AnalysedFigure, training: Training, runs: Runs) -> tuple[Analysis, Network] | None:
    """The analysis of a network with this training, stored beside any run of the figure's networks."""
    for run in (run for one in figure.trainings for run in runs.faithful(one)):
        try:
            analysis = read_analysis(run.folder / FOLDER, figure.analysis)
        except DataError:
            continue
        for network in analysis.networks:
            if not differing(network.identity, training.identity):
                return analysis, network
    return None


def _joined(measured: Sequence[tuple[Analysis, Network]]) -> Analysis:
    import pandas as pd

    first = measured[0][0]
    tables = {
        name: pd.concat([analysis.of(network, name) for analysis, network in measured], ignore_index=True)
        for name in first.tables
    }
    return replace(first, networks=tuple(network for _, network in measured), tables=tables)


def _command(figure: AnalysedFigure, training: Training, runs: Runs) -> str:
    own = runs.faithful(training)
    if not own:
        return training.command
    return f"python -m geexp.analyze analysis={figure.analysis} run={shlex.quote(str(own[0].folder))}"
