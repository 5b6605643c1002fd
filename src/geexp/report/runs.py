"""Finished runs as records, and what was found beside them that is none, with the reason."""

import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from geexp.report.rows import Training, differing, network_key
from geexp.report.style import VARIANT_STYLE
from geexp.runs.identity import flat
from geexp.runs.run_files import LAST, PREVIOUS, RESULT, checkpoint_folder, read_history
from geexp.runs.status import STATUS, read_status

FORMAT = 1  # of result.json
_KEYS = {"top1": "val/top1_error", "top5": "val/top5_error", "map": "val/AP"}


@dataclass(frozen=True)
class Run:
    """A run that has come to its end. Its figures are in percent, of the last epoch and of the best one."""

    folder: Path
    result: dict[str, Any] = field(repr=False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Dotted keys, without the seed."""
        leaves = flat(self.result["identity"])
        leaves.pop("seed", None)
        return leaves

    @cached_property
    def network(self) -> tuple[tuple[str, Any], ...]:
        return network_key(self.identity)

    @property
    def seed(self) -> int:
        return int(self.result["identity"]["seed"])

    @property
    def detector(self) -> bool:
        return "detector.layout" in self.identity

    def figure(self, metric: str, which: str = "last") -> float:
        """``top1`` or ``top5`` error, or a detector's ``map``, after the ``last`` epoch or the ``best`` one."""
        return float(self.result["metrics"][which][_KEYS[metric]])

    def history(self) -> list[dict[str, Any]]:
        return read_history(self.folder)

    def differences(self, training: Training) -> dict[str, tuple[Any, Any]]:
        """What makes it another training than the paper's: the keys with its value and the paper's."""
        found = differing(self.identity, training.identity)
        return found | self._backbone_differences(training.backbone) if training.backbone else found

    def _backbone_differences(self, backbone: Training) -> dict[str, tuple[Any, Any]]:
        """Of a detector, what makes its backbone another than the paper's."""
        started = self.result.get("backbone") or {}
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


def read_runs(folder: Path) -> tuple[list[Run], list[LeftOut]]:
    """All runs at or below a folder, by network, then by variant in the paper's order, and what was left out.

    Those that a checkout publishes are found only in their own folder.
    Of a run, its folder holds ``result.json``, ``status.json`` or checkpoints; other folders are passed over.
    """
    runs: list[Run] = []
    left_out: list[LeftOut] = []
    order = list(VARIANT_STYLE)
    for place, below, files in os.walk(folder):
        here = Path(place)
        below[:] = sorted(name for name in below if name != "published" and not name.startswith("."))
        if RESULT in files or STATUS in files or _has_checkpoint(here, below):
            below.clear()  # checkpoints and loggers' files
            found = _read(here, has_result=RESULT in files)
            if isinstance(found, Run):
                runs.append(found)
            else:
                left_out.append(found)
    runs.sort(key=lambda run: (run.identity["model.name"], order.index(run.identity["ge.variant"]), str(run.folder)))
    return runs, left_out


def _has_checkpoint(folder: Path, below: list[str]) -> bool:
    return checkpoint_folder(folder).name in below and any(
        (checkpoint_folder(folder) / name).is_file() for name in (LAST, PREVIOUS)
    )


def _read(folder: Path, *, has_result: bool) -> Run | LeftOut:
    if not has_result:
        found = read_status(folder)
        status = asdict(found) if found is not None else {}
        state = {"running": "still running", None: "not finished"}.get(status.get("state"), status.get("state"))
        reason = f": {status['reason']}" if status.get("reason") else ""
        return LeftOut(folder, f"{state}{reason}")
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except OSError as error:
        return LeftOut(folder, f"{RESULT} cannot be read: {error.strerror}")
    except ValueError:
        return LeftOut(folder, f"{RESULT} is cut short or damaged; training again with the same command replaces it")
    if not isinstance(result, dict):
        return LeftOut(folder, f"{RESULT} does not say that the run was completed")
    return checked(Run(folder, result))


def checked(run: Run) -> Run | LeftOut:
    """The run, if it has what is needed of one."""
    folder, result = run.folder, run.result
    if result.get("status") != "completed":
        return LeftOut(folder, f"{RESULT} does not say that the run was completed")
    if result.get("format") != FORMAT:
        return LeftOut(folder, f"{RESULT} has format {result.get('format')}, and this version reads {FORMAT}")
    try:
        for which in ("last", "best"):
            for metric in ("map",) if run.detector else ("top1", "top5"):
                run.figure(metric, which)
        _ = run.seed, run.network, run.identity["model.name"], result["complexity"]["params"]
        if run.identity["ge.variant"] not in VARIANT_STYLE:
            return LeftOut(
                folder, f"{RESULT} is of a variant that this version does not know: {run.identity['ge.variant']}"
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return LeftOut(folder, f"{RESULT} lacks what a result has: {error}")
    return run
