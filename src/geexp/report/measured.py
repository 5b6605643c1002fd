"""Measured figures: mean and spread over seeds in the paper's protocol, and in other protocols apart from it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from geexp.report.rows import Cell, Training, trainings
from geexp.report.runs import FinishedRun


@dataclass(frozen=True)
class Measured:
    """A figure, in percent, of runs that repeat one training with different seeds."""

    runs: tuple[FinishedRun, ...]
    metric: str
    which: str = "last"

    @property
    def values(self) -> list[float]:
        return [run.figure(self.metric, self.which) for run in self.runs]

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation; None for a single run."""
        return stdev(self.values) if self.n > 1 else None

    @property
    def spread(self) -> str:
        """``22.00 ± 0.12``."""
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")

    def __str__(self) -> str:
        return f"{self.spread} ({', '.join(self.about)})"

    @property
    def about(self) -> list[str]:
        """``n=3``; on ImageNet also over how many images BN normalised, which is 32 in the authors' files."""
        words = [f"n={self.n}"]
        if self.images_per_batchnorm:
            words.append("BN over " + " or ".join(map(str, self.images_per_batchnorm)))
        return words

    @property
    def images_per_batchnorm(self) -> list[int]:
        """Of classifiers on ImageNet; in a detector BN is fixed."""
        of_imagenet = [run for run in self.runs if run.identity["data.name"] == "imagenet" and not run.detector]
        return sorted({run.identity["optim.batchnorm_batch"] for run in of_imagenet})


@dataclass(frozen=True)
class OtherProtocol:
    """Runs of a cell's network under another protocol, and the settings that differ from the paper's."""

    measured: Measured
    differences: dict[str, tuple[Any, Any]]


class Runs:
    """All runs of a report, found by training."""

    def __init__(self, runs: Iterable[FinishedRun]) -> None:
        self._by_network: dict[Any, list[FinishedRun]] = defaultdict(list)
        for run in sorted(runs, key=lambda run: (run.seed, str(run.folder))):
            self._by_network[run.network].append(run)

    def faithful(self, training: Training) -> list[FinishedRun]:
        """The runs of the paper's own training, one per seed."""
        return one_per_seed([run for run in self._by_network[training.network] if not run.differences(training)])

    def of_training(self, training: Training, metric: str) -> Measured | None:
        runs = self.faithful(training)
        return Measured(tuple(runs), metric) if runs else None

    def elsewhere(self, cell: Cell) -> list[OtherProtocol]:
        """Runs of the same network that fill no cell of the paper, by protocol, those that differ least first."""
        groups: dict[str, list[FinishedRun]] = defaultdict(list)
        of_paper = [training for training in trainings() if training.network == cell.training.network]
        for run in self._by_network[cell.training.network]:
            if all(run.differences(training) for training in of_paper):
                groups[str(run.differences(cell.training))].append(run)
        found = [
            OtherProtocol(Measured(tuple(one_per_seed(runs)), cell.metric), runs[0].differences(cell.training))
            for runs in groups.values()
        ]
        return sorted(found, key=lambda group: len(group.differences))


def one_per_seed(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs by seed; of several with one seed, which are the same sample, the one that finished last."""
    kept: dict[int, FinishedRun] = {}
    for run in sorted(runs, key=lambda run: run.result.metrics["last"].get("time") or 0):
        kept[run.seed] = run
    return [kept[seed] for seed in sorted(kept)]
