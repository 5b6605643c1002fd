"""Which curves the page draws, and their numbers."""

from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from geexp.report.measured import one_per_seed
from geexp.report.page import words
from geexp.report.page.marks import plotly_line
from geexp.report.rows import OF_THE_HARDWARE
from geexp.report.runs import Run
from geexp.report.style import VARIANT_STYLE

# What is drawn. 2,000 runs of 300 epochs would make a page of some hundred megabytes.
SETTINGS = 8
CURVES = 40  # of one setting
SEEDS_APART = 12  # with more curves than these, seeds are drawn as their mean
AVERAGED = 10
LONG = 20  # epochs
POINTS = 200  # of one curve

_GROUPS = ("model", "data", "schedule")
_TRAIN, _VAL = "train/top1_error", "val/top1_error"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed: curves of one look."""

    label: str
    line: dict[str, Any]
    runs: tuple[Run, ...]
    train: float | None  # after the last epoch, the mean of what is drawn

    @property
    def last(self) -> str:
        return _spread([run.figure("top1") for run in self.runs])

    @property
    def best(self) -> str:
        return _spread([run.figure("top1", "best") for run in self.runs])


@dataclass(frozen=True)
class Setting:
    """Runs on the same model, data and schedule, to be drawn together; ``drawing`` is for the page's script."""

    name: str
    protocol: str
    groups: tuple[Group, ...]
    drawing: dict[str, Any]
    undrawn: tuple[str, ...]
    step: int  # between the epochs that are drawn
    means: bool  # over seeds, instead of a curve each


def settings_of(runs: Sequence[Run], filled: Container[Path]) -> tuple[list[Setting], list[tuple[str, int]]]:
    """What is drawn, settings that fill the paper's tables ahead, and the names and runs of settings that are not."""
    parts = list(_parts(runs, filled))

    def weight(part: tuple[str, str, list[Run]]) -> tuple[Any, ...]:
        name, protocol, found = part
        networks = len({run.network for run in found})
        return -sum(run.folder in filled for run in found), -networks, -len(found), name, protocol

    drawn: list[Setting] = []
    undrawn: list[tuple[str, int]] = []
    for name, protocol, found in sorted(parts, key=weight):
        setting = _drawn(name, protocol, found) if len(drawn) < SETTINGS else None
        if setting is not None:
            drawn.append(setting)
        else:
            undrawn.append((f"{name}, {protocol}" if protocol else name, len(found)))
    return drawn, undrawn


def _parts(runs: Sequence[Run], filled: Container[Path]) -> Iterator[tuple[str, str, list[Run]]]:
    """Name, protocol and runs of what makes one picture.

    Of one model, data set and schedule, a protocol under which several networks were trained has a picture of its own;
    the others, of which there is only one curve each, share one.
    """
    settings: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        names = [run.identity.get(key) for key in (*(f"{group}.name" for group in _GROUPS), "scale")]
        protocol = {k: v for k, v in run.identity.items() if not k.startswith("ge.") and k not in OF_THE_HARDWARE}
        name = ", ".join(str(found) for found in names if found is not None)
        settings[name][str(sorted(protocol.items()))].append(run)
    for name, protocols in settings.items():
        varying = _varying([found[0] for found in protocols.values()])
        single: list[Run] = []
        for found in protocols.values():
            if len(protocols) > 1 and len({run.network for run in found}) == 1:
                single += found
            elif any(run.folder in filled for run in found):
                yield name, "the paper's protocol", found
            else:
                yield name, _settings(found[0], varying), found
        if single:
            yield name, "other protocols" if len(protocols) > 1 else "", single


def _varying(runs: Sequence[Run]) -> list[str]:
    """In what runs differ, beyond GE, seed and hardware."""
    leaves = [run.identity for run in runs]
    keys = sorted({key for leaf in leaves for key in leaf if not key.startswith("ge.")} - OF_THE_HARDWARE)
    return [key for key in keys if len({str(leaf.get(key)) for leaf in leaves}) > 1]


def _settings(run: Run, keys: Sequence[str]) -> str:
    return " ".join(f"{key}={words.value(run.identity.get(key))}" for key in keys)


def _drawn(name: str, protocol: str, runs: Sequence[Run]) -> Setting | None:
    """None if no run has a history."""
    groups = _groups(runs)
    seeds = sorted((place, number, label) for number, label in enumerate(groups) for place in range(len(groups[label])))
    if len(seeds) <= SEEDS_APART:
        lines = [(label, groups[label][place : place + 1]) for place, _, label in seeds]
    else:
        lines = list(groups.items())
    curves: dict[str, list[dict[str, Any]]] = defaultdict(list)
    empty, longest = 0, 1
    for label, repeated in lines[:CURVES]:
        known = [history for history in map(_history, repeated[:AVERAGED]) if history]
        empty += len(repeated[:AVERAGED]) - len(known)
        if known:
            whose = f"seed {repeated[0].seed}" if len(repeated) == 1 else f"mean of {len(known)} seeds"
            curve, step = _curve(known)
            curves[label].append({"name": whose, **curve})
            longest = max(longest, step)
    if not curves:
        return None
    places: dict[Any, int] = defaultdict(int)
    drawn, drawing = [], []
    for label in groups:
        if label in curves:
            variant = groups[label][0].identity.get("ge.variant")
            line = plotly_line(variant, places[variant])
            places[variant] += 1
            lasts = [error for curve in curves[label] for error in curve["train"][-1:] if error is not None]
            drawn.append(Group(label, line, tuple(groups[label]), mean(lasts) if lasts else None))
            # plotly reads a little HTML in its texts, and labels come from files
            drawing.append({**line, "label": escape(label), "curves": curves[label]})
    undrawn = {
        f"beyond the {CURVES} curves that a picture holds": max(0, len(lines) - CURVES),
        "without a history": empty,
        "repeated by a later run with the same seed": len(runs) - len(seeds),
    }
    said = tuple(f"{count} {why}" for why, count in undrawn.items() if count)
    every = [curve for group in curves.values() for curve in group]
    means = len(seeds) > SEEDS_APART
    return Setting(name, protocol, tuple(drawn), {"range": _range(every), "groups": drawing}, said, longest, means)


def _curve(histories: Sequence[dict[int, dict[str, Any]]]) -> tuple[dict[str, Any], int]:
    """What is drawn of a history, or of the mean of some over the epochs that they share, and at which step."""
    shared = sorted(set.intersection(*(set(history) for history in histories)))
    step = max(1, -(-len(shared) // POINTS))
    epochs = shared[::step] + (shared[-1:] if (len(shared) - 1) % step else [])
    curve: dict[str, Any] = {"epoch": epochs}
    for split, key in (("train", _TRAIN), ("val", _VAL)):
        errors = ([_percent(history[epoch].get(key)) for history in histories] for epoch in epochs)
        curve[split] = [_mean(found) for found in errors]
    return curve, step


def _range(curves: Sequence[dict[str, Any]]) -> list[float] | None:
    """Of the errors after the first tenth of many epochs, in which they fall too far to see the rest."""
    if max(len(curve["epoch"]) for curve in curves) < LONG:
        return None
    begun = [
        error
        for curve in curves
        for split in ("train", "val")
        for error in curve[split][-(-len(curve[split]) // 10) :]
        if error is not None
    ]
    if not begun or max(begun) == min(begun):
        return None
    margin = (max(begun) - min(begun)) / 20
    return [max(0.0, min(begun) - margin), max(begun) + margin]


def _history(run: Run) -> dict[int, dict[str, Any]]:
    try:
        return {int(row["epoch"]): row for row in run.history()}
    except (OSError, UnicodeDecodeError):  # damaged: no reason to have no page
        return {}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(mean(known), 3) if len(known) == len(values) else None


def _percent(value: Any) -> float | None:
    found = words.number(value)
    return found if found is not None and isfinite(found) else None


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """By label, which says in what the runs differ beyond their seeds; by variant in the paper's order."""
    varying = _varying(runs)
    found: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (_place(run), run.seed)):
        label = f"{words.network(run.result['identity'].get('ge'))} {_settings(run, varying)}"
        found[label.strip()].append(run)
    return {label: one_per_seed(repeated) for label, repeated in found.items()}


def _place(run: Run) -> tuple[int, str]:
    order = list(VARIANT_STYLE)
    variant = run.identity.get("ge.variant")
    return order.index(variant) if variant in order else len(order), words.network(run.result["identity"].get("ge"))


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
