"""What the paper says of its tables in words, held against the runs at hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import isnan
from typing import Any

from scipy.stats import ttest_ind

from geexp.registry import options
from geexp.report.measured import Runs, one_per_seed
from geexp.report.rows import DETECTION, OF_THE_HARDWARE, Training, curves_of, rows_of, trainings
from geexp.report.runs import FinishedRun

SUPPORTS, CONTRADICTS, CANNOT_TELL = "supports", "contradicts", "cannot tell"
LEVEL = 0.05
# Two errors this close, in percentage points, count as equal. The paper names no margin; the two that it calls equal
# are 0.06 apart, and what it calls an improvement is 0.2 or more.
MARGIN = 0.2


@dataclass(frozen=True)
class Claim:
    """A statement of the paper as comparisons of trainings: in each pair the first is better, or they are equal.

    ``anywhere`` is what it says of a network that is not the paper's; None if it says nothing that another does not.
    """

    text: str
    where: str
    pairs: tuple[tuple[Training, Training], ...]
    equal: bool = False
    anywhere: str | None = None
    metric: str = "top1"

    def sample(self, runs: Sequence[FinishedRun]) -> list[float]:
        """Of which less is better."""
        sign = -1 if self.metric == "map" else 1
        return [sign * run.figure(self.metric) for run in runs]


@dataclass(frozen=True)
class Judgement:
    """What runs of one setting say of a claim. ``p`` is None where no test could be made."""

    claim: Claim
    setting: str
    verdict: str
    reason: str
    p: float | None = None
    test: str = ""


def claims() -> list[Claim]:
    """The paper's statements about errors and about detection, in its order."""
    figure2 = curves_of(2)
    extents = ("e2", "e4", "e8", "global")
    found = [
        Claim(
            "Every extent improves on the baseline",
            "Figure 2",
            tuple((figure2[f"{v}_{e}"], figure2["baseline"]) for v in ("theta_minus", "theta") for e in extents),
            anywhere="Every extent improves on the baseline",
        ),
        Claim(
            "The larger the extent, the lower the error",
            "Figure 2",
            tuple(
                (figure2[f"{variant}_{larger}"], figure2[f"{variant}_{smaller}"])
                for variant in ("theta_minus", "theta")
                for smaller, larger in pairwise(extents)
            ),
            anywhere="The larger the extent, the lower the error",
        ),
        Claim("Later stages gain more than stage 2", "Table 1", _over("GE-θ (stage2)", 1, "(stage3)", "(stage4)")),
        Claim("GE-θ⁻, without parameters, matches ResNet-101", "Table 2", _over("ResNet-101", 2, "GE-θ⁻"), equal=True),
    ]
    found += [
        Claim(
            f"GE-θ⁺ is the best of all on {network}",
            f"Table {table}",
            _best(table, "GE-θ⁺"),
            anywhere="GE-θ⁺ is the best of all" if table == 2 else None,
        )
        for table, network in ((2, "ResNet-50"), (3, "ResNet-101"), (4, "ShuffleNet"))
    ]
    baseline = rows_of(5)[0]
    found.append(
        Claim(
            "GE improves every network on CIFAR",
            "Table 5",
            tuple(
                (cell.training, plain.training)
                for row in rows_of(5)
                if row.label.startswith("GE")
                for cell, plain in zip(row.cells, baseline.cells, strict=True)
            ),
            anywhere="GE improves on the baseline",
        )
    )
    found.append(
        Claim(
            "Average pooling beats max pooling",
            "Table 6",
            _over("(E4, max)", 6, "(E4, avg)") + _over("(global, max)", 6, "(global, avg)"),
            anywhere="Average pooling beats max pooling",
        )
    )
    baseline_detector, ge_detector = (row.training for row in rows_of(DETECTION))
    found.append(
        Claim("GE-θ improves Faster R-CNN on COCO", "detection", ((ge_detector, baseline_detector),), metric="map")
    )
    return found


def judge_all(runs: Runs, everything: Sequence[FinishedRun]) -> list[Judgement]:
    """Every claim in the paper's own protocol, and in each other setting whose runs can say something about it."""
    settings = _settings([run for run in everything if not run.detector])
    found = []
    for claim in claims():
        found.append(judge(claim, "the paper's protocol", runs.faithful))
        of_one = _of_one_network(claim)
        for name, by_ge in settings.items() if claim.anywhere else ():
            if any(_ge(a) in by_ge and _ge(b) in by_ge for a, b in of_one.pairs):
                found.append(judge(of_one, name, partial(_with_ge, by_ge)))
    return found


def judge(claim: Claim, setting: str, runs_of: Callable[[Training], list[FinishedRun]]) -> Judgement:
    """Test a claim: all of its comparisons must hold for support, one that is turned round contradicts it."""
    missing = sorted({t.preset for pair in claim.pairs for t in pair if not runs_of(t)})
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return Judgement(claim, setting, CANNOT_TELL, f"not run: {some}")
    samples = [(claim.sample(runs_of(a)), claim.sample(runs_of(b))) for a, b in claim.pairs]
    seeds = min(len(sample) for pair in samples for sample in pair)
    differences = [sum(a) / len(a) - sum(b) / len(b) for a, b in samples]
    worst = max(differences, key=abs) if claim.equal else max(differences)
    shown = -worst if claim.metric == "map" else worst
    said = f"difference {shown:+.2f} points" + (" at the least favourable" if len(samples) > 1 else "")
    if seeds < 2:
        return Judgement(claim, setting, CANNOT_TELL, f"{said}; one seed has no spread to compare it with")
    test = "two one-sided Welch t-tests" if claim.equal else "one-sided Welch t-test"
    holds = max((_equal if claim.equal else _less)(a, b) for a, b in samples)
    if holds < LEVEL:
        return Judgement(claim, setting, SUPPORTS, said, holds, test)
    fails = min((_unequal if claim.equal else _more)(a, b) for a, b in samples) * len(samples)
    if fails < LEVEL:
        return Judgement(claim, setting, CONTRADICTS, said, min(fails, 1.0), f"{test}, turned round")
    return Judgement(claim, setting, CANNOT_TELL, f"{said}, within the spread over {seeds} seeds", holds, test)


def _less(a: list[float], b: list[float]) -> float:
    p = float(ttest_ind(a, b, equal_var=False, alternative="less").pvalue)
    return 1.0 if isnan(p) else p  # of samples without any spread


def _more(a: list[float], b: list[float]) -> float:
    return _less(b, a)


def _equal(a: list[float], b: list[float]) -> float:
    """That the difference is not below -MARGIN, and not above MARGIN."""
    return max(_less(a, [x + MARGIN for x in b]), _less([x - MARGIN for x in b], a))


def _unequal(a: list[float], b: list[float]) -> float:
    """That it is beyond the margin, on one side or the other."""
    return 2 * min(_less([x + MARGIN for x in b], a), _less(a, [x - MARGIN for x in b]))


def _training(table: int, label: str) -> Training:
    (row,) = (row for row in rows_of(table) if row.label.endswith(label))
    return row.training


def _over(worse: str, table: int, *better: str) -> tuple[tuple[Training, Training], ...]:
    return tuple((_training(table, label), _training(table, worse)) for label in better)


def _best(table: int, label: str) -> tuple[tuple[Training, Training], ...]:
    best = _training(table, label)
    return tuple((best, row.training) for row in rows_of(table) if row.training != best)


def _of_one_network(claim: Claim) -> Claim:
    """Of a claim on several networks, what it says of one: elsewhere there is one network only."""
    of_one = {(_ge(a), _ge(b)): (a, b) for a, b in claim.pairs if a.model == b.model}
    return replace(claim, text=claim.anywhere or claim.text, pairs=tuple(of_one.values()))


def _with_ge(by_ge: dict[Any, list[FinishedRun]], training: Training) -> list[FinishedRun]:
    return by_ge.get(_ge(training), [])


def _ge(training: Training) -> tuple[tuple[str, str], ...]:
    return _ge_key(training.identity)


def _ge_key(leaves: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What GE a network has; on all its stages is the same thing on any network."""
    settings = {key: str(value) for key, value in leaves.items() if key.startswith("ge.")}
    backbone = options("model").get(leaves["model.name"])
    if backbone is not None and leaves.get("ge.stages") == backbone["stages"]:
        settings["ge.stages"] = "all"
    return tuple(sorted(settings.items()))


def _settings(runs: Sequence[FinishedRun]) -> dict[str, dict[Any, list[FinishedRun]]]:
    """Runs of another protocol than any of the paper's, by all but their GE and seed, and then by their GE."""
    of_paper = {str(_but_ge(training.identity)) for training in trainings()}
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        key = str(_but_ge(run.identity))
        if key not in of_paper:
            groups.setdefault(key, []).append(run)
    settings: dict[str, dict[Any, list[FinishedRun]]] = {}
    names = _names([_but_ge(group[0].identity) for group in groups.values()])
    for name, group in zip(names, groups.values(), strict=True):
        by_ge: dict[Any, list[FinishedRun]] = {}
        for run in group:
            by_ge.setdefault(_ge_key(run.identity), []).append(run)
        settings[name] = {ge: one_per_seed(found) for ge, found in by_ge.items()}
    return settings


def _names(settings: Sequence[dict[str, str]]) -> list[str]:
    """``resnet8, fashion_mnist_mini, demo``, and for those that have that in common, in what else they differ."""
    said = [", ".join(leaves[key] for key in _NAMED if leaves.get(key)) for leaves in settings]
    names = []
    for name, leaves in zip(said, settings, strict=True):
        alike = [other for other, others_name in zip(settings, said, strict=True) if others_name == name]
        keys = {key for other in alike for key in {*other, *leaves} if other.get(key) != leaves.get(key)}
        names.append(", ".join([name, *(f"{key}={leaves.get(key)}" for key in sorted(keys))]))
    return names


_NAMED = ("model.name", "data.name", "schedule.name", "scale")


def _but_ge(leaves: dict[str, Any]) -> dict[str, str]:
    kept = {key: value for key, value in leaves.items() if not key.startswith("ge.") and key not in OF_THE_HARDWARE}
    return {key: str(kept[key]) for key in sorted(kept)}
