"""Finished runs as the report needs them, and folders of runs that do not count as finished, with the reason."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from geexp.analysis.drawing import variant_style
from geexp.config.errors import DataError
from geexp.config.labels import ge_label, model_label
from geexp.data.parallel import with_bar
from geexp.registry import options
from geexp.report.rows import Training, differing, network_key
from geexp.runs.identity import flat
from geexp.runs.run import Result, Run, find_runs

_KEYS = {"top1": "val/top1_error", "top5": "val/top5_error", "map": "val/AP"}


@dataclass(frozen=True)
class FinishedRun:
    """A complete run. Its figures are in percent, of the last epoch and of the best one.

    ``read_history`` returns a row per epoch.
    """

    folder: Path
    result: Result = field(repr=False)
    read_history: Callable[[], list[dict[str, Any]]] = field(repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """Dotted keys, without the seed."""
        return self.result.leaves

    @cached_property
    def network(self) -> tuple[tuple[str, Any], ...]:
        return network_key(self.identity)

    @property
    def seed(self) -> int:
        return self.result.seed

    @property
    def detector(self) -> bool:
        return self.result.detects

    @property
    def variant(self) -> str:
        return str(self.identity["ge.variant"])

    @cached_property
    def label(self) -> str:
        """``GE-θ (E4)``; a user's own variant has the label of its configuration."""
        settings = {key.removeprefix("ge."): value for key, value in self.identity.items() if key.startswith("ge.")}
        return ge_label(settings, None if self.variant in options("ge") else self.result.ge_label)

    @property
    def model_label(self) -> str:
        return str(self._configured("model", "label") or model_label(self.identity["model.name"]))

    @cached_property
    def style(self) -> dict[str, Any]:
        """Its variant's ``color``, ``linestyle`` and ``marker``."""
        return variant_style(self.variant, self._configured("ge", "style"))

    @property
    def place(self) -> tuple[Any, ...]:
        """A key that sorts runs by variant, in the paper's order with users' own last, and then by label."""
        known = options("ge").get(self.variant)
        order = known.get("order", 0) if known is not None else self._configured("ge", "order")
        return known is None, order if isinstance(order, int) else 100, self.variant, self.label

    def _configured(self, group: str, key: str) -> Any:
        found = self.result.config.get(group)
        return found.get(key) if isinstance(found, dict) else None

    def figure(self, metric: str, which: str = "last") -> float:
        """``top1`` or ``top5`` error, or a detector's ``map``, after the ``last`` epoch or the ``best`` one."""
        return float(self.result.metrics[which][_KEYS[metric]])

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """A row per epoch; empty if the file is damaged."""
        try:
            return self.read_history()
        except (OSError, UnicodeDecodeError):
            return []

    def differences(self, training: Training) -> dict[str, tuple[Any, Any]]:
        """The settings in which it differs from the paper's training, with its value and the paper's."""
        found = differing(self.identity, training.identity)
        return found | self._backbone_differences(training.backbone) if training.backbone else found

    def _backbone_differences(self, backbone: Training) -> dict[str, tuple[Any, Any]]:
        """The settings in which a detector's backbone differs from the paper's."""
        started = self.result.backbone or {}
        if started.get("identity") is None:
            given = "nothing" if self.identity["detector.backbone"] == "nothing" else "weights of another origin"
            return {"backbone": (given, backbone.preset)}
        leaves = flat(started["identity"])
        leaves.pop("seed", None)
        return {f"backbone's {key}": values for key, values in differing(leaves, backbone.identity).items()}


@dataclass(frozen=True)
class LeftOut:
    """A folder that looks like a run and cannot be counted as one."""

    folder: Path
    reason: str


def read_runs(folder: Path) -> tuple[list[FinishedRun], list[LeftOut]]:
    """All runs at or below a folder, by network, then by variant in the paper's order, and what was left out."""
    runs: list[FinishedRun] = []
    left_out: list[LeftOut] = []
    for run in with_bar(find_runs(folder), f"reading the runs in {folder}"):
        found = finished_or_left_out(run)
        runs.append(found) if isinstance(found, FinishedRun) else left_out.append(found)
    runs.sort(key=lambda run: (run.identity["model.name"], run.place[:3], str(run.folder)))
    return runs, left_out


def finished_or_left_out(run: Run) -> FinishedRun | LeftOut:
    """The run of a folder, or why it does not count as finished."""
    try:
        return FinishedRun(run.folder, run.read_result(), run.history)
    except DataError as error:
        return LeftOut(run.folder, str(error))
