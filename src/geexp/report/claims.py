"""The paper's statements in words, tested on the runs."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import isnan
from statistics import mean
from typing import Any

from scipy.stats import ttest_ind

from geexp.registry import options
from geexp.report.curves import by_setting, protocol_of
from geexp.report.measured import Runs, one_per_seed
from geexp.report.rows import DETECTION, Training, curves_of, rows_of, trainings
from geexp.report.runs import FinishedRun

SUPPORTS, CONTRADICTS, CANNOT_TELL = "supports", "contradicts", "cannot tell"
LEVEL = 0.05
# Two errors this close, in percentage points, count as equal. The paper names no margin; the two that it calls equal
# are 0.06 apart, and what it calls an improvement is 0.2 or more.
MARGIN = 0.2


@dataclass(frozen=True)
class Claim:
    """A statement of the paper as comparisons of trainings: in each pair the first is better, or they are equal.

    ``anywhere`` is the statement for a network that is not the paper's; None if another claim has the same one.
    """

    text: str
    where: str
    pairs: tuple[tuple[Training, Training], ...]
    equal: bool = False
    anywhere: str | None = None
    metric: str = "top1"

    def sample(self, runs: Sequence[FinishedRun]) -> list[float]:
        """The runs' figures, with the sign that makes less better."""
        sign = -1 if self.metric == "map" else 1
        return [sign * run.figure(self.metric) for run in runs]


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim from the runs of one setting. ``p`` is None if no test was possible."""

    claim: Claim
    setting: str
    verdict: str
    reason: str
    p: float | None = None
    test: str = ""


def claims() -> list[Claim]:
    """The paper's statements about errors and about detection, in its order."""
    figure2 = curves_of(2)
    variants = ("theta_minus", "theta")
    extents = ("e2", "e4", "e8", "global")
    baseline = rows_of(5)[0]
    baseline_detector, ge_detector = (row.training for row in rows_of(DETECTION))
    return [
        Claim(
            "Every extent improves on the baseline",
            "Figure 2",
            tuple((figure2[f"{v}_{e}"], figure2["baseline"]) for v in variants for e in extents),
            anywhere="Every extent improves on the baseline",
        ),
        Claim(
            "The larger the extent, the lower the error",
            "Figure 2",
            tuple(
                (figure2[f"{v}_{more}"], figure2[f"{v}_{less}"]) for v in variants for less, more in pairwise(extents)
            ),
            anywhere="The larger the extent, the lower the error",
        ),
        Claim("Later stages gain more than stage 2", "Table 1", _over("GE-θ (stage2)", 1, "(stage3)", "(stage4)")),
        Claim("GE-θ⁻, without parameters, matches ResNet-101", "Table 2", _over("ResNet-101", 2, "GE-θ⁻"), equal=True),
        Claim(
            "GE-θ⁺ is the best of all on ResNet-50", "Table 2", _best(2, "GE-θ⁺"), anywhere="GE-θ⁺ is the best of all"
        ),
        Claim("GE-θ⁺ is the best of all on ResNet-101", "Table 3", _best(3, "GE-θ⁺")),
        Claim("GE-θ⁺ is the best of all on ShuffleNet", "Table 4", _best(4, "GE-θ⁺")),
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
        ),
        Claim(
            "Average pooling beats max pooling",
            "Table 6",
            _over("(E4, max)", 6, "(E4, avg)") + _over("(global, max)", 6, "(global, avg)"),
            anywhere="Average pooling beats max pooling",
        ),
        Claim("GE-θ improves Faster R-CNN on COCO", "detection", ((ge_detector, baseline_detector),), metric="map"),
    ]


def judge_all(runs: Runs, everything: Sequence[FinishedRun]) -> list[Judgement]:
    """Every claim in the paper's own protocol, and in each other setting that trained one of its comparisons."""
    settings = _other_settings([run for run in everything if not run.detector])
    found = []
    for claim in claims():
        found.append(judge(claim, "the paper's protocol", runs.faithful))
        if claim.anywhere is None:
            continue
        of_one = _of_one_network(claim)
        for name, by_ge in settings.items():
            if any(_ge(a.identity) in by_ge and _ge(b.identity) in by_ge for a, b in of_one.pairs):
                found.append(judge(of_one, name, partial(_with_ge, by_ge)))
    return found


def judge(claim: Claim, setting: str, runs_of: Callable[[Training], list[FinishedRun]]) -> Judgement:
    """Test a claim: all of its comparisons must hold for support, a single reversed one contradicts it."""
    missing = sorted({t.preset for pair in claim.pairs for t in pair if not runs_of(t)})
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return Judgement(claim, setting, CANNOT_TELL, f"not run: {some}")
    samples = [(claim.sample(runs_of(a)), claim.sample(runs_of(b))) for a, b in claim.pairs]
    seeds = min(len(sample) for pair in samples for sample in pair)
    differences = [mean(a) - mean(b) for a, b in samples]
    worst = max(differences, key=abs) if claim.equal else max(differences)
    shown = -worst if claim.metric == "map" else worst
    reason = f"difference {shown:+.2f} points" + (" at the least favourable" if len(samples) > 1 else "")
    if seeds < 2:
        return Judgement(claim, setting, CANNOT_TELL, f"{reason}; one seed has no spread to compare it with")
    test = "two one-sided Welch t-tests" if claim.equal else "one-sided Welch t-test"
    holds = max((_equal if claim.equal else _less)(a, b) for a, b in samples)
    if holds < LEVEL:
        return Judgement(claim, setting, SUPPORTS, reason, holds, test)
    fails = min((_unequal if claim.equal else _more)(a, b) for a, b in samples) * len(samples)
    if fails < LEVEL:
        return Judgement(claim, setting, CONTRADICTS, reason, fails, f"{test}, turned round")
    return Judgement(claim, setting, CANNOT_TELL, f"{reason}, within the spread over {seeds} seeds", holds, test)


def _less(a: list[float], b: list[float]) -> float:
    p = float(ttest_ind(a, b, equal_var=False, alternative="less").pvalue)
    return 1.0 if isnan(p) else p  # of samples without any spread


def _more(a: list[float], b: list[float]) -> float:
    return _less(b, a)


def _equal(a: list[float], b: list[float]) -> float:
    """That the difference is within the margin."""
    return max(_less(a, [x + MARGIN for x in b]), _less([x - MARGIN for x in b], a))


def _unequal(a: list[float], b: list[float]) -> float:
    """That the difference is beyond the margin, on either side."""
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
    """A claim on several networks as a claim on one, since another setting has one network only."""
    of_one = {(_ge(a.identity), _ge(b.identity)): (a, b) for a, b in claim.pairs if a.model == b.model}
    return replace(claim, text=claim.anywhere or claim.text, pairs=tuple(of_one.values()))


def _with_ge(by_ge: dict[Any, list[FinishedRun]], training: Training) -> list[FinishedRun]:
    return by_ge.get(_ge(training.identity), [])


def _ge(leaves: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The GE settings of an identity; on all stages is the same on any network."""
    settings = {key: str(value) for key, value in leaves.items() if key.startswith("ge.")}
    backbone = options("model").get(leaves["model.name"])
    if backbone is not None and leaves.get("ge.stages") == backbone["stages"]:
        settings["ge.stages"] = "all"
    return tuple(sorted(settings.items()))


def _other_settings(runs: Sequence[FinishedRun]) -> dict[str, dict[Any, list[FinishedRun]]]:
    """The runs of each protocol that is none of the paper's, by their GE."""
    of_paper = {protocol_of(training.identity) for training in trainings()}
    others = [run for run in runs if protocol_of(run.identity) not in of_paper]
    settings = {}
    for name, protocols in by_setting(others).items():
        for words, found in protocols.items():
            by_ge: dict[Any, list[FinishedRun]] = defaultdict(list)
            for run in found:
                by_ge[_ge(run.identity)].append(run)
            full_name = f"{name}, {words}" if words else name
            settings[full_name] = {ge: one_per_seed(repeated) for ge, repeated in by_ge.items()}
    return settings
