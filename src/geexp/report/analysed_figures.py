"""Figures 3, 5, 7 and 8: what python -m geexp.analyze measured on networks that were trained as the paper's."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from geexp.config.errors import DataError
from geexp.report.analyses import pruning, selectivity
from geexp.report.analyses.stored import FOLDER, Analysis, Network, read_analysis
from geexp.report.measured import Runs
from geexp.report.rows import Training, rows_of


@dataclass(frozen=True)
class AnalysedFigure:
    """Which analysis of which rows of Table 2 a figure shows, the network it is about first."""

    title: str
    analysis: str
    labels: tuple[str, ...]

    @property
    def trainings(self) -> tuple[Training, ...]:
        by_label = {row.label: row.cells[0].training for row in rows_of(2)}
        return tuple(by_label[label] for label in self.labels)


_BASELINE = "ResNet-50 (Baseline)"
ANALYSED = {
    3: AnalysedFigure("class selectivity of ResNet-50 and GE-θ", "selectivity", ("GE-θ", _BASELINE)),
    5: AnalysedFigure("feature importance in GE-θ", "pruning", ("GE-θ", _BASELINE)),
    7: AnalysedFigure("class selectivity of ResNet-50, GE-θ⁻ and SE", "selectivity", ("GE-θ⁻", "SE", _BASELINE)),
    8: AnalysedFigure("feature importance in SE", "pruning", ("SE", _BASELINE)),
}
_KINDS = {"selectivity": selectivity, "pruning": pruning}


def draw_analysed(number: int, runs: Runs, path: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files of the picture, none if nothing was measured, and the commands for what it lacks."""
    figure = ANALYSED[number]
    found = [(training, _found(figure, training, runs)) for training in figure.trainings]
    lacking = tuple(command for training, one in found if one is None for command in _commands(figure, training, runs))
    there = [one for _, one in found if one is not None]
    if not there:
        return (), lacking
    title = f"Figure {number}: {figure.title}"
    return _KINDS[figure.analysis].draw(_together(there), path, title), lacking


def _found(figure: AnalysedFigure, training: Training, runs: Runs) -> tuple[Analysis, Network] | None:
    """What was measured on a network of this training, beside whichever run of the figure's it lies."""
    for run in (run for one in figure.trainings for run in runs.faithful(one)):
        try:
            analysis = read_analysis(run.folder / FOLDER, figure.analysis)
        except DataError:
            continue
        for network in analysis.networks:
            if network.is_of(training):
                return analysis, network
    return None


def _together(there: Sequence[tuple[Analysis, Network]]) -> Analysis:
    tables = {
        name: pd.concat([analysis.of(network, name) for analysis, network in there], ignore_index=True)
        for name in there[0][0].tables
    }
    return replace(there[0][0], networks=tuple(network for _, network in there), tables=tables)


def _commands(figure: AnalysedFigure, training: Training, runs: Runs) -> list[str]:
    own = runs.faithful(training)
    if not own:
        return [command_for(training)]
    return [f"python -m geexp.analyze analysis={figure.analysis} run={shlex.quote(str(own[0].folder))}"]


def command_for(training: Training) -> str:
    """What trains it."""
    root = {"imagenet": "/data/imagenet", "coco2014": "/data/coco"}.get(training.config.data.name, "/data")
    return f"python -m geexp.train experiment={training.preset} data.root={root} trainer=gpu"
