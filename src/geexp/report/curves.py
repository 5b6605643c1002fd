"""Curves of metrics against the epoch for pictures and for the page, and how runs are labelled and grouped."""

from collections import defaultdict
from collections.abc import Sequence
from math import isfinite
from statistics import mean
from typing import Any

from geexp.analysis.drawing import MARKERS, Curve
from geexp.report.rows import OF_THE_HARDWARE
from geexp.report.runs import FinishedRun

TRAIN, VAL = "train/top1_error", "val/top1_error"
_NAMES = ("model", "data", "schedule")


def make_curve(
    runs: Sequence[FinishedRun], metrics: Sequence[str], *, label: str, style: dict[str, Any], points: int | None = None
) -> Curve | None:
    """The curve of a run, or the mean of several runs over their common epochs; None without a history.

    Args:
        points: keep about this many epochs at most, evenly spaced, and the last.
    """
    histories = [{int(row["epoch"]) for row in run.history} for run in runs if run.history]
    if not histories:
        return None
    shared = sorted(set.intersection(*histories))
    step = max(1, -(-len(shared) // points)) if points else 1
    epochs = shared[::step] + (shared[-1:] if (len(shared) - 1) % step else [])
    values = {}
    for key in metrics:
        found = [{int(row["epoch"]): row[key] for row in rows_with(run, key)} for run in runs if run.history]
        values[key] = [_mean([by_epoch.get(epoch) for by_epoch in found]) for epoch in epochs]
    return Curve(label, style, epochs, values)


def rows_with(run: FinishedRun, metric: str) -> list[dict[str, Any]]:
    """The rows of the history that hold a metric; one of training images only those of whole epochs."""
    rows = whole_epochs(run) if metric.startswith("train/") else run.history
    return [row for row in rows if row.get(metric) is not None]


def whole_epochs(run: FinishedRun) -> list[dict[str, Any]]:
    """The history without a shorter last epoch, which a schedule that counts iterations can end in."""
    images = [row.get("train/images") or 0 for row in run.history]
    return [row for row, own in zip(run.history, images, strict=True) if own == max(images)]


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if isinstance(value, int | float) and isfinite(value)]
    return round(mean(known), 3) if len(known) == len(values) else None


def next_look(style: dict[str, Any], taken: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The style, with another marker for each of ``taken`` that has its colour and dashes already."""
    alike = [one for one in taken if (one["color"], one["linestyle"]) == (style["color"], style["linestyle"])]
    markers = [style["marker"], *(marker for marker in MARKERS if marker != style["marker"])]
    return style | {"marker": markers[len(alike) % len(markers)]}


def labels_of(runs: Sequence[FinishedRun], *, seeds: bool = True) -> list[str]:
    """Labels with the variant of each run and every setting that differs among the runs.

    Without ``seeds``, runs that repeat a training share a label, also on other hardware.
    """
    varying = differing_keys(runs, [] if seeds else OF_THE_HARDWARE)
    named = [group for group in _NAMES if f"{group}.name" in varying]
    # Groups of other names differ in their settings too: there the names are enough.
    single = [key for key in varying if not key.startswith(tuple(f"{group}." for group in named))]
    several = seeds and len({run.seed for run in runs}) > 1
    labels = []
    for run in runs:
        words = [run.label, *(str(run.identity[f"{group}.name"]) for group in named if group != "model")]
        words = [run.identity["model.name"]] * ("model" in named) + words
        words += [f"{key}={as_setting(run.identity.get(key))}" for key in single]
        labels.append(" ".join(words + [f"seed {run.seed}"] * several))
    return labels


def differing_keys(runs: Sequence[FinishedRun], without: Any = OF_THE_HARDWARE) -> list[str]:
    """The keys in which runs differ, except GE and seed."""
    keys = {key for run in runs for key in run.identity if not key.startswith("ge.")} - set(without)
    return sorted(key for key in keys if len({str(run.identity.get(key)) for run in runs}) > 1)


def by_setting(runs: Sequence[FinishedRun]) -> dict[str, dict[str, list[FinishedRun]]]:
    """Runs by model, data set and schedule, and within these by protocol, named by the keys in which it differs."""
    settings: dict[str, dict[str, list[FinishedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        names = [run.identity.get(key) for key in ("model.name", "data.name", "schedule.name", "scale")]
        name = ", ".join(str(found) for found in names if found is not None)
        settings[name][protocol_of(run.identity)].append(run)
    named = {}
    for name, protocols in settings.items():
        varying = differing_keys([found[0] for found in protocols.values()])
        named[name] = {
            " ".join(f"{key}={as_setting(found[0].identity.get(key))}" for key in varying): found
            for found in protocols.values()
        }
    return named


def protocol_of(leaves: dict[str, Any]) -> str:
    """An identity without GE and without the settings of the hardware, as text to compare."""
    return str(sorted((k, str(v)) for k, v in leaves.items() if not k.startswith("ge.") and k not in OF_THE_HARDWARE))


def as_setting(value: Any) -> str:
    """A value as written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_setting, value))}]"
    return str(value)
