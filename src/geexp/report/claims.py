"""The paper's claims in words, each with its sentence, tested on the runs."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import isfinite, isnan, nan
from statistics import mean
from typing import Any

from scipy.stats import ttest_ind

from geexp.registry import options
from geexp.report.curves import TRAIN, VAL, by_setting, protocol_of
from geexp.report.differences import holm, p_text
from geexp.report.measured import Runs, one_per_seed
from geexp.report.rows import DETECTION, Training, curves_of, rows_of, trainings
from geexp.report.runs import FinishedRun

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
LEVEL = 0.05
NOT_RUN = "not run"
# Percentage points by which a network may be worse than another one and still be on a par with it. The paper names no
# margin [choice]. The smallest difference that it calls an improvement is 0.01 (stage 2 in Table 1), then 0.12.
MARGIN = 0.1

NOTE = f"""\
One-sided Welch t-tests between the seeds of two networks; p is corrected by Holm's method for all claims tested on the
runs of one setting. A claim holds if p is under {LEVEL:g}, and does not hold if the reverse is significant.
Otherwise, and with one seed, it cannot be told.
"""

EXTENTS = ("e2", "e4", "e8", "global")
# The parts of the fixed schedule between the drops of its learning rate, in epochs from 1 on.
PHASES = ((1, 30), (31, 60), (61, 90), (91, 100))

# The order of Table 5, which is the same on its six networks: against the baseline, and each against the next.
_TABLE5 = (
    *((better, "Baseline") for better in ("SE", "GE-θ⁻", "GE-θ", "GE-θ⁺")),
    *pairwise(("GE-θ⁺", "SE", "GE-θ", "GE-θ⁻")),
)

Pair = tuple[Training, Training]
Measure = Callable[[FinishedRun], float]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper as comparisons of trainings: in each pair the first is better.

    Attributes:
        text: the claim in short; ``quote``: the paper's own words, if they are quoted; ``where`` they stand.
        margin: points by which the first may be worse; 0 if it must be better.
        anywhere: the claim for a network that is not the paper's; None if it cannot be made or another claim has it.
        measures: what is compared in each pair, less being better.
        unit: of the measures.
        higher: whether more is better, so that differences are shown with the other sign.
    """

    text: str
    quote: str
    where: str
    pairs: tuple[Pair, ...]
    margin: float = 0.0
    anywhere: str | None = None
    measures: tuple[Measure, ...] = (lambda run: run.figure("top1"),)
    unit: str = "points"
    higher: bool = False


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim from the runs of one setting.

    ``p`` is corrected for the number of claims tested on the setting's runs; None if no test was possible.
    """

    claim: Claim
    setting: str
    verdict: str
    reason: str
    p: float | None = None
    test: str = ""


@dataclass(frozen=True)
class _Tested:
    """A claim before its verdict. ``holds`` and ``fails`` are p-values: that it holds, that it is the other way round.

    Both are None if no test was possible.
    """

    claim: Claim
    setting: str
    reason: str
    holds: float | None = None
    fails: float | None = None
    test: str = ""
    seeds: int = 0


def claims() -> list[Claim]:
    """What the paper's text claims about errors, training and detection, in its order."""
    figure2, figure4 = curves_of(2), curves_of(4)
    theta_minus, theta = ([figure2[f"{name}_{extent}"] for extent in EXTENTS] for name in ("theta_minus", "theta"))
    baseline_detector, ge_detector = (row.training for row in rows_of(DETECTION))
    return [
        Claim(
            "Each increase of the extent improves GE-θ⁻",
            "Each increase in the extent ratio yields consistent improvements",
            "Figure 2",
            tuple((more, less) for less, more in pairwise([figure2["baseline"], *theta_minus])),
            anywhere="Each increase of the extent improves GE-θ⁻",
        ),
        Claim(
            "GE-θ⁻, without parameters, is on a par with ResNet-101",
            "competitive with the much heavier ResNet-101 … able to outperform its 101-layer counterpart",
            "section 3.1 and abstract, Table 2",
            _over("ResNet-101", 2, "GE-θ⁻"),
            margin=MARGIN,
        ),
        Claim(
            "Average pooling beats max pooling",
            "average pooling consistently outperforms max pooling",
            "Table 6",
            _over("(E4, max)", 6, "(E4, avg)") + _over("(global, max)", 6, "(global, avg)"),
            anywhere="Average pooling beats max pooling",
        ),
        Claim(
            "Max pooling over a moderate extent improves on the baseline",
            "",
            "Table 6",
            _over("ResNet-50", 6, "(E4, max)"),
            anywhere="Max pooling over extent 4 improves on the baseline",
        ),
        Claim(
            "Max pooling over the full extent is worse than the baseline",
            "hurts",
            "Table 6",
            _over("(global, max)", 6, "ResNet-50"),
            anywhere="Max pooling over the full extent is worse than the baseline",
        ),
        Claim(
            "GE-θ improves with the extent",
            "a similar overall trend",
            "Figure 2",
            ((theta[-1], theta[0]),),
            anywhere="GE-θ improves from extent 2 to global",
        ),
        Claim(
            "GE-θ is better than GE-θ⁻ at each extent",
            "additional parameters brings expected improvements",
            "section 3.2, Figure 2",
            tuple(zip(theta, theta_minus, strict=True)),
            anywhere="GE-θ is better than GE-θ⁻ at each extent",
        ),
        Claim(
            "GE-θ in any one stage improves on the baseline",
            "some improvement from insertion at every stage",
            "Table 1",
            _over("(Baseline)", 1, "(stage2)", "(stage3)", "(stage4)"),
        ),
        Claim(
            "GE-θ in a mid or late stage gains more than in stage 2",
            "the greatest improvement comes from the mid and late stages",
            "Table 1",
            _over("(stage2)", 1, "(stage3)", "(stage4)"),
        ),
        Claim(
            "GE-θ in all stages is better than in any one",
            "not mutually redundant",
            "Table 1",
            tuple((_training(1, "(all)"), _training(1, f"(stage{stage})")) for stage in (2, 3, 4)),
        ),
        Claim(
            "GE-θ⁺ is better than SE and GE-θ",
            "outperforms the SE and GE-θ models",
            "section 3.2, Table 2",
            tuple((_training(2, "GE-θ⁺"), _training(2, label)) for label in ("SE", "GE-θ")),
        ),
        Claim(
            "ResNet-50 with GE-θ⁺ is on a par with ResNet-152",
            "approaches",
            "section 3.2, Table 2",
            ((_training(2, "GE-θ⁺"), _training(3, "ResNet-152")),),
            margin=MARGIN,
        ),
        Claim(
            "GE improves ResNet-101",
            "",
            "Table 3",
            _over("(Baseline)", 3, "GE-θ⁻", "GE-θ", "GE-θ⁺"),
        ),
        Claim(
            "ResNet-101 with GE-θ⁻ is better than ResNet-152",
            "GE-θ⁻ (101) outperforms a deeper ResNet-152",
            "caption of Table 3",
            _over("ResNet-152", 3, "GE-θ⁻"),
        ),
        Claim(
            "GE-θ improves ShuffleNet",
            "The GE-θ variants yield improvements",
            "Table 4",
            _over("(Baseline)", 4, *(row.label for row in rows_of(4) if row.label.startswith("GE"))),
        ),
        *(_order_of_table5(better, worse) for better, worse in _TABLE5),
        Claim(
            "GE-θ improves Faster R-CNN on COCO",
            "",
            "detection",
            ((ge_detector, baseline_detector),),
            measures=(lambda run: -run.figure("map"),),
            higher=True,
        ),
        Claim(
            "GE-θ has a lower training and validation error throughout the fixed schedule",
            "achieves lower training and validation error throughout",
            "Figure 4",
            ((figure4["theta"], figure4["baseline"]),),
            measures=tuple(partial(_mean_error, key=key, phase=phase) for key in (TRAIN, VAL) for phase in PHASES),
        ),
        Claim(
            "GE-θ⁻ takes longer to train than GE-θ",
            "takes longer",
            "on training, beside Figure 4",
            ((theta[-1], theta_minus[-1]),),
            measures=(lambda run: float(run.result.metrics["last"]["epoch"]),),
            unit="epochs",
        ),
    ]


def judge_all(runs: Runs, everything: Sequence[FinishedRun]) -> list[Judgement]:
    """Every claim in the paper's own protocol, and in each other setting that trained one of its comparisons."""
    settings = _other_settings([run for run in everything if not run.detector])
    tested = []
    for claim in claims():
        tested.append(_test(claim, "the paper's protocol", runs.faithful))
        if claim.anywhere is None:
            continue
        of_one = _of_one_network(claim)
        for name, by_ge in settings.items():
            if any(_ge(a.identity) in by_ge and _ge(b.identity) in by_ge for a, b in of_one.pairs):
                tested.append(_test(of_one, name, partial(_with_ge, by_ge)))
    return _verdicts(tested)


def judge(claim: Claim, setting: str, runs_of: Callable[[Training], list[FinishedRun]]) -> Judgement:
    """Test a single claim: supported if all its comparisons hold, contradicted if one is significantly reversed.

    A result that is better than claimed never contradicts. With one seed the verdict is inconclusive.
    """
    (found,) = _verdicts([_test(claim, setting, runs_of)])
    return found


def _test(claim: Claim, setting: str, runs_of: Callable[[Training], list[FinishedRun]]) -> _Tested:
    missing = sorted({t.preset for pair in claim.pairs for t in pair if not runs_of(t)})
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return _Tested(claim, setting, f"{NOT_RUN}: {some}")
    samples = [
        ([measure(run) for run in runs_of(a)], [measure(run) for run in runs_of(b)])
        for a, b in claim.pairs
        for measure in claim.measures
    ]
    if not all(map(isfinite, (value for pair in samples for sample in pair for value in sample))):
        return _Tested(claim, setting, "a history is incomplete")
    seeds = min(len(sample) for pair in samples for sample in pair)
    worst = max(mean(a) - mean(b) for a, b in samples)
    shown = -worst if claim.higher else worst
    reason = f"difference {shown:+.2f} {claim.unit}" + (" at the least favourable" if len(samples) > 1 else "")
    if seeds < 2:
        return _Tested(claim, setting, f"{reason}; one seed has no spread to compare it with")
    test = "one-sided Welch t-test" + (f", margin {claim.margin:g} {claim.unit}" if claim.margin else "")
    limits = [(a, [x + claim.margin for x in b]) for a, b in samples]
    holds = max(_less(a, limit) for a, limit in limits)
    fails = min(min(_less(limit, a) for a, limit in limits) * len(limits), 1.0)
    return _Tested(claim, setting, reason, holds, fails, test, seeds)


def _verdicts(tested: Sequence[_Tested]) -> list[Judgement]:
    """The verdicts in the same order; p-values are corrected over all claims tested in one setting."""
    families: dict[str, list[_Tested]] = defaultdict(list)
    for one in tested:
        families[one.setting].append(one)
    corrected = {
        setting: zip(holm([one.holds for one in family]), holm([one.fails for one in family]), strict=True)
        for setting, family in families.items()
    }
    return [_verdict(one, *next(corrected[one.setting])) for one in tested]


def _verdict(one: _Tested, holds: float | None, fails: float | None) -> Judgement:
    if holds is None or fails is None:
        return Judgement(one.claim, one.setting, INCONCLUSIVE, one.reason)
    if holds < LEVEL:
        return Judgement(one.claim, one.setting, SUPPORTED, one.reason, holds, one.test)
    if fails < LEVEL:
        return Judgement(one.claim, one.setting, CONTRADICTED, one.reason, fails, f"{one.test}, turned round")
    reason = f"{one.reason}, within the spread over {one.seeds} seeds"
    return Judgement(one.claim, one.setting, INCONCLUSIVE, reason, holds, one.test)


def describe(judgements: Sequence[Judgement]) -> str:
    """The verdicts on claims whose runs are there as plain sentences in Markdown, by setting."""
    words = {SUPPORTED: "Holds", CONTRADICTED: "Does not hold", INCONCLUSIVE: "Cannot be told"}
    by_setting: dict[str, list[str]] = defaultdict(list)
    for one in judgements:
        if not one.reason.startswith(NOT_RUN):
            p = "" if one.p is None else f", p {p_text(one.p)}"
            by_setting[one.setting].append(f"- {words[one.verdict]}: {one.claim.text} ({one.reason}{p}).\n")
    parts = [f"## {setting}\n\n{''.join(lines)}\n" for setting, lines in by_setting.items()]
    return f"# The paper's claims on these runs\n\n{''.join(parts)}{NOTE}"


def _mean_error(run: FinishedRun, *, key: str, phase: tuple[int, int]) -> float:
    """The mean of an error over the epochs of a phase; NaN if the history lacks one of them."""
    first, last = phase
    errors = {int(row["epoch"]): row.get(key) for row in run.history}
    values = [errors.get(epoch) for epoch in range(first, last + 1)]
    return nan if None in values else mean(float(value) for value in values if value is not None)


def _less(a: list[float], b: list[float]) -> float:
    p = float(ttest_ind(a, b, equal_var=False, alternative="less").pvalue)
    return 1.0 if isnan(p) else p  # of samples without any spread


def _training(table: int, label: str) -> Training:
    (row,) = (row for row in rows_of(table) if row.label.endswith(label))
    return row.training


def _over(worse: str, table: int, *better: str) -> tuple[tuple[Training, Training], ...]:
    return tuple((_training(table, label), _training(table, worse)) for label in better)


def _order_of_table5(better: str, worse: str) -> Claim:
    rows = {row.label: row.cells for row in rows_of(5)}
    pairs = tuple((a.training, b.training) for a, b in zip(rows[better], rows[worse], strict=True))
    name = "the baseline" if worse == "Baseline" else worse
    quote = "GE still yields good performance gains" if worse == "Baseline" and better != "SE" else ""
    text = f"{better} is better than {name}"
    return Claim(text, quote, "Table 5", pairs, anywhere=text)


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
