"""The networks of each setting against its baseline, paired by seed: table, files and a picture of the mean curves."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from scipy.stats import ttest_1samp

from geexp.analysis.drawing import canvas, save
from geexp.report.curves import TRAIN, VAL, by_setting, labels_of, next_look, rows_with, whole_epochs
from geexp.report.measured import Measured, one_per_seed
from geexp.report.runs import FinishedRun
from geexp.report.tables import Column, Table, of_dicts, to_csv, to_markdown

CONFIDENCE = 0.95
_BRIEF = ("network", "top-1 error, %", "seeds", "difference", "95 % interval", "p (Holm)")
NOTE = """\
Difference: the top-1 error minus the baseline's with the same seed, in percentage points, as the mean over the common
seeds with its 95 % confidence interval (Student's t). p: two-sided paired t-test. p (Holm): corrected by Holm's method
for all tests in the table. Seconds an epoch, with its validation: the median of the fastest tenth of all epochs, since
other work on the machine only ever slows one down. Memory: the highest peak of any of the runs.
"""


@dataclass(frozen=True)
class Difference:
    """The mean of differences between pairs, with its confidence interval and two-sided p-value.

    With one pair, or no spread among the pairs, the interval and ``p`` are None. ``holm`` is ``p`` corrected for all
    tests of a table.
    """

    n: int
    mean: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    holm: float | None = None


@dataclass(frozen=True)
class Network:
    """The runs of one network in a setting, one per seed, and its difference from the baseline (None for itself)."""

    label: str
    style: dict[str, Any]
    runs: tuple[FinishedRun, ...]
    difference: Difference | None

    @property
    def error(self) -> Measured:
        return Measured(self.runs, "top1")

    @property
    def train_error(self) -> float | None:
        """The training error of the last whole epoch, the mean over seeds; None if a run did not record it."""
        errors = [rows[-1][TRAIN] if (rows := rows_with(run, TRAIN)) else None for run in self.runs]
        return None if None in errors else mean(float(error) for error in errors if error is not None)

    @property
    def epoch_seconds(self) -> float | None:
        """The median of the fastest tenth of all epochs."""
        seconds = sorted(float(row["seconds"]) for run in self.runs for row in whole_epochs(run) if row.get("seconds"))
        return median(seconds[: max(1, len(seconds) // 10)]) if seconds else None

    @property
    def memory(self) -> float | None:
        """Peak memory in GiB: the GPU's if there is one, else resident memory of the process."""
        peaks = [run.result.peak_memory_bytes for run in self.runs]
        found = [peak.get("gpu") or peak.get("resident") for peak in peaks]
        return max((peak / 2**30 for peak in found if peak), default=None)

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it in plain types, for CSV and JSON."""
        numbers: dict[str, Any] = {
            "network": self.label,
            "seeds": " ".join(str(run.seed) for run in self.runs),
            "mean": self.error.mean,
            "std": self.error.std,
            "train_error": self.train_error,
            "parameters": self.runs[0].result.complexity["params"],
            "epoch_seconds": self.epoch_seconds,
            "memory_gib": self.memory,
            "run_seconds": mean(run.result.seconds for run in self.runs),
        }
        if (found := self.difference) is not None:
            low, high = found.interval or (None, None)
            numbers |= {"pairs": found.n, "difference": found.mean, "low": low, "high": high}
            numbers |= {"p": found.p, "holm": found.holm}
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in numbers.items()}


@dataclass(frozen=True)
class Comparison:
    """The networks of a setting (model, data, schedule and protocol), the baseline first."""

    setting: str
    networks: tuple[Network, ...]

    @property
    def picture(self) -> str:
        """The name of its picture without suffix."""
        return "errors-" + re.sub(r"[^\w.=]+", "-", self.setting)[:100].strip("-")

    @property
    def repeated(self) -> bool:
        """Whether any network has several seeds."""
        return any(len(network.runs) > 1 for network in self.networks)

    @property
    def shown(self) -> Sequence[Network]:
        """The networks with several seeds, or all if these cannot be compared with each other."""
        found = [network for network in self.networks if len(network.runs) > 1]
        return found if len(found) > 1 else self.networks

    @property
    def table(self) -> Table[Network]:
        def of(read: Callable[[Difference], Any], form: Callable[[Any], str] = str) -> tuple[Any, Any]:
            def value(network: Network) -> Any:
                return None if network.difference is None else read(network.difference)

            return lambda network: "" if value(network) is None else form(value(network)), value

        def number(read: Callable[[Network], float | None], form: str) -> tuple[Any, Any]:
            return lambda network: "" if read(network) is None else form.format(read(network)), read

        columns = [
            Column[Network]("network", lambda network: network.label, key="network", right=False, css="label"),
            Column("top-1 error, %", lambda network: network.error.spread, lambda network: network.error.mean),
            Column("seeds", lambda network: str(len(network.runs))),
            Column("training error, %", *number(lambda network: network.train_error, "{:.2f}")),
            Column("pairs", *of(lambda found: found.n)),
            Column("difference", *of(lambda found: found.mean, "{:+.2f}".format)),
            Column("95 % interval", *of(lambda found: found.interval, interval_text)),
            Column("p", *of(lambda found: found.p, p_text)),
            Column("p (Holm)", *of(lambda found: found.holm, p_text)),
            Column("parameters", lambda network: f"{network.runs[0].result.complexity['params']:,}"),
            Column("seconds an epoch", *number(lambda network: network.epoch_seconds, "{:.1f}")),
            Column("memory, GiB", *number(lambda network: network.memory, "{:.2f}")),
        ]
        return Table(columns, self.networks, title=f"{self.setting}: differences from the baseline by seed")

    @property
    def brief(self) -> Table[Network]:
        """The table of the networks shown, without what takes space."""
        columns = [column for column in self.table.columns if column.heading in _BRIEF]
        return replace(self.table, columns=columns, rows=self.shown)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The numbers of the table, in plain types."""
        return [network.numbers | {"setting": self.setting} for network in self.networks]


def compare(runs: Sequence[FinishedRun]) -> tuple[Comparison, ...]:
    """The settings of classifiers that have a baseline and another network."""
    found = []
    for name, protocols in by_setting([run for run in runs if not run.detector]).items():
        for words, members in protocols.items():
            networks = _networks(members)
            if len(networks) > 1 and networks[0].runs[0].variant == "none":
                found.append(Comparison(f"{name}, {words}" if words else name, networks))
    return tuple(found)


def _networks(runs: Sequence[FinishedRun]) -> tuple[Network, ...]:
    runs = sorted(runs, key=lambda run: (run.place, run.seed))  # the baseline first
    by_label: dict[str, list[FinishedRun]] = defaultdict(list)
    for run, label in zip(runs, labels_of(runs, seeds=False), strict=True):
        by_label[label].append(run)
    (baseline, *others) = map(one_per_seed, by_label.values())
    found = [paired(errors_by_seed(own, baseline)) for own in others]
    adjusted = holm([None if one is None else one.p for one in found])
    differences = [None, *(one and replace(one, holm=p) for one, p in zip(found, adjusted, strict=True))]
    networks: list[Network] = []
    for label, own, difference in zip(by_label, (baseline, *others), differences, strict=True):
        style = next_look(own[0].style, [network.style for network in networks])
        networks.append(Network(label, style, tuple(own), difference))
    return tuple(networks)


def errors_by_seed(ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun]) -> list[float]:
    """The differences in top-1 error between runs with a common seed."""
    errors = {run.seed: run.figure("top1") for run in theirs}
    return [run.figure("top1") - errors[run.seed] for run in ours if run.seed in errors]


def paired(differences: Sequence[float]) -> Difference | None:
    """Statistics of differences between pairs; None without any."""
    if not differences:
        return None
    rounded = [round(one, 6) for one in differences]  # so that equal ones have no spread
    if len(set(rounded)) == 1:
        return Difference(len(rounded), rounded[0])
    test = ttest_1samp(rounded, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Difference(len(rounded), mean(rounded), (float(low), float(high)), float(test.pvalue))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected by Holm's step-down method for their number; None stays None and does not count."""
    tested = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (p, place) in enumerate(tested):
        least = min(1.0, max(least, (len(tested) - rank) * p))
        corrected[place] = least
    return corrected


def interval_text(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.2f} to {interval[1]:+.2f}"


def p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# Files


def write_differences(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """``differences.md`` and ``.csv``, and for each setting ``errors-<setting>.svg`` and ``.png``."""
    if not comparisons:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    tables = "".join(f"## {one.setting}\n\n{to_markdown(one.table)}\n" for one in comparisons)
    text = f"# Differences from the baseline\n\n{tables}{NOTE}"
    files = {"differences.md": text, "differences.csv": to_csv(_numbers(comparisons))}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8", errors="backslashreplace")
    drawn = [path for one in comparisons for path in draw_errors(one, folder / one.picture)]
    return [*(folder / name for name in files), *drawn]


def _numbers(comparisons: Sequence[Comparison]) -> Table[dict[str, Any]]:
    keys = [
        "setting",
        "network",
        "seeds",
        "mean",
        "std",
        "train_error",
        "pairs",
        "difference",
        "low",
        "high",
        "p",
        "holm",
    ]
    keys += ["parameters", "epoch_seconds", "memory_gib", "run_seconds"]
    return of_dicts(keys, [row for one in comparisons for row in one.rows])


def draw_errors(comparison: Comparison, path: Path) -> tuple[Path, ...]:
    """The mean error of the networks shown against the epoch, with a band of ± one standard deviation over seeds.

    The third panel is the last quarter of the second, where the networks can be told apart.
    """
    figure, axes = canvas(1, 3, comparison.setting, size=(4.0, 4.2))
    titles = ("training images, augmented", "validation images", "validation images, last quarter")
    for axis, metric, title in zip(axes, (TRAIN, VAL, VAL), titles, strict=True):
        for network in comparison.shown:
            _draw_mean(axis, network, metric, last_quarter=axis is axes[2])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("top-1 error, %" + (": mean ± std over seeds" if comparison.repeated else ""))
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return save(figure, path)


def _draw_mean(axis: Any, network: Network, metric: str, *, last_quarter: bool) -> None:
    found = [{int(row["epoch"]): row[metric] for row in rows_with(run, metric)} for run in network.runs]
    histories = [history for history in found if history]
    shared = sorted(set.intersection(*map(set, histories))) if histories else []
    epochs = [epoch for epoch in shared if not last_quarter or epoch > shared[-1] * 3 // 4]
    errors = [[history[epoch] for history in histories] for epoch in epochs]
    means = [mean(values) for values in errors]
    spreads = [stdev(values) if len(values) > 1 else 0.0 for values in errors]
    style = {key: network.style[key] for key in ("color", "linestyle", "marker")}
    every = max(1, len(epochs) // 8)  # two variants differ in colour and marker only
    axis.plot(epochs, means, label=network.label, linewidth=1.5, markersize=4, markevery=every, **style)
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    axis.fill_between(epochs, low, high, color=network.style["color"], alpha=0.15, linewidth=0)
