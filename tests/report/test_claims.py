"""The paper's claims on hand-made runs: clearly better, equal, clearly worse, one seed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from geexp.report.claims import CONTRADICTED, INCONCLUSIVE, MARGIN, SUPPORTED, Claim, claims, describe, judge, judge_all
from geexp.report.measured import Runs
from geexp.report.rows import Training
from geexp.report.runs import FinishedRun, read_runs
from tests.support.made_runs import training, write_detector, write_training

CLAIMS = {claim.text: claim for claim in claims()}
NOISE = (0.0, 0.03, -0.03)


class Result:
    def __init__(self, epoch: float) -> None:
        self.metrics = {"last": {"epoch": epoch}}


class HandMade:
    """A run with one value for everything that a claim measures; for a detector it is the mAP."""

    def __init__(self, value: float, claim: Claim) -> None:
        self.value = -value if claim.higher else value
        self.result = Result(value)
        self.history = [{"epoch": epoch, "train/top1_error": value, "val/top1_error": value} for epoch in range(1, 101)]

    def figure(self, metric: str) -> float:
        return self.value


def values_of(claim: Claim, step: float) -> dict[str, float]:
    """A value for each preset so that the first of each pair is lower by ``step`` or more; higher if it is negative."""
    values: dict[str, float] = {}
    ranks = {t.preset: 0 for pair in claim.pairs for t in pair}
    for _ in ranks:  # the longest chain of comparisons
        for better, worse in claim.pairs:
            ranks[worse.preset] = max(ranks[worse.preset], ranks[better.preset] + 1)
    for preset, rank in ranks.items():
        values[preset] = 20 + step * rank
    return values


def judged(claim: Claim, values: dict[str, float], noise: Sequence[float] = NOISE) -> str:
    def runs_of(training: Training) -> list[FinishedRun]:
        return [HandMade(values[training.preset] + one, claim) for one in noise]  # type: ignore[misc]

    return judge(claim, "", runs_of).verdict


@pytest.mark.parametrize("text", CLAIMS)
def test_verdicts(text):
    claim = CLAIMS[text]
    equal = SUPPORTED if claim.margin else INCONCLUSIVE
    assert judged(claim, values_of(claim, 0.6)) == SUPPORTED
    assert judged(claim, values_of(claim, 0.0)) == equal
    assert judged(claim, values_of(claim, -0.6)) == CONTRADICTED
    for step in (0.6, -0.6):
        assert judged(claim, values_of(claim, step), noise=(0.0,)) == INCONCLUSIVE


@pytest.mark.parametrize("text", CLAIMS)
def test_better_than_claimed_never_contradicts(text):
    for step in (0.0, 0.1, 0.6, 3.0, 10.0):
        for noise in (NOISE, (0.0, 1.0, -1.0), (0.0, 0.0, 0.0)):
            assert judged(CLAIMS[text], values_of(CLAIMS[text], step), noise) != CONTRADICTED


def test_on_a_par_allows_the_margin():
    claim = CLAIMS["GE-θ⁻, without parameters, is on a par with ResNet-101"]
    assert claim.margin == MARGIN
    small = (0.0, 0.01, -0.01)
    assert judged(claim, values_of(claim, -0.5 * MARGIN), small) == SUPPORTED
    assert judged(claim, values_of(claim, -2 * MARGIN), small) == CONTRADICTED
    assert judged(claim, values_of(claim, -MARGIN), small) == INCONCLUSIVE


def test_one_reversed_comparison_contradicts_and_one_open_one_decides_nothing():
    claim = CLAIMS["Average pooling beats max pooling"]
    values = values_of(claim, 0.6)
    assert judged(claim, values | {"table6_global_avg": 25.0}) == CONTRADICTED
    assert judged(claim, values | {"table6_global_avg": values["table6_global_max"]}) == INCONCLUSIVE


def test_a_phase_of_the_schedule_in_which_ge_is_worse_contradicts_throughout():
    claim = CLAIMS["GE-θ has a lower training and validation error throughout the fixed schedule"]

    def runs_of(training: Training) -> list[FinishedRun]:
        better = training.variant == "theta"
        runs = [HandMade(20 + one - better, claim) for one in NOISE]
        for run in runs:
            for row in run.history[60:90]:
                row["val/top1_error"] += 5 * better
        return runs  # type: ignore[return-value]

    assert judge(claim, "", runs_of).verdict == CONTRADICTED


def test_every_claim_has_its_place_and_a_text_of_its_own():
    assert len(CLAIMS) == len(claims()) == 25
    assert all(claim.where and claim.pairs for claim in claims())


# Runs in folders


def runs_with(tmp_path: Path, errors: dict[str, list[float]], table: int = 6) -> Runs:
    for label, values in errors.items():
        for seed, error in enumerate(values):
            write_training(tmp_path / f"{label}{seed}", training(table, label), seed=seed, top1=error)
    return Runs(read_runs(tmp_path)[0])


@pytest.mark.parametrize(
    ("global_max", "global_avg", "verdict"),
    [
        ([23.6, 23.7, 23.65], [22.1, 22.2, 22.15], SUPPORTED),
        ([22.1, 22.2, 22.15], [23.6, 23.7, 23.65], CONTRADICTED),
        ([22.1, 23.2, 22.6], [22.2, 23.0, 22.5], INCONCLUSIVE),
        ([23.6], [22.1], INCONCLUSIVE),
    ],
)
def test_runs_of_a_table(tmp_path, global_max, global_avg, verdict):
    errors = {"(global, max)": global_max, "(global, avg)": global_avg}
    errors |= {"(E4, max)": [23.1, 23.2], "(E4, avg)": [22.0, 22.1]}
    claim = CLAIMS["Average pooling beats max pooling"]
    found = judge(claim, "", runs_with(tmp_path, errors).faithful)
    assert found.verdict == verdict
    assert (found.p is None) == (len(global_max) == 1)


def test_without_its_runs_a_claim_names_them():
    found = judge(CLAIMS["Average pooling beats max pooling"], "", Runs([]).faithful)
    assert (found.verdict, found.p) == (INCONCLUSIVE, None)
    assert found.reason == "not run: table6_e4_avg, table6_e4_max, table6_global_avg and 1 more"


def test_detectors(tmp_path):
    for row, values in ((0, (27.0, 27.4)), (1, (28.4, 28.6))):
        for seed, value in enumerate(values):
            write_detector(tmp_path / f"{row}{seed}", row, value, seed=seed)
    runs = Runs(read_runs(tmp_path)[0])
    found = judge(CLAIMS["GE-θ improves Faster R-CNN on COCO"], "", runs.faithful)
    assert (found.verdict, found.reason) == (SUPPORTED, "difference +1.30 points")


def test_other_settings_are_judged_by_themselves(tmp_path):
    """A small network on a small set can say whether GE-θ⁺ is better there, and no more than that."""
    errors = {"ResNet-50 (Baseline)": 20.0, "SE": 19.0, "GE-θ⁻": 19.5, "GE-θ": 18.0, "GE-θ⁺": 15.0}
    for label, error in errors.items():
        for seed in range(3):
            of = training(2, label)
            but = {"schedule.epochs": 5, "trainer.max_epochs": 5}
            write_training(tmp_path / f"{label}{seed}", of, seed=seed, top1=error + seed / 10, but=but)
    runs, _ = read_runs(tmp_path)
    judgements = judge_all(Runs(runs), runs)
    found = {j.claim.text: j for j in judgements if j.setting == "resnet50, imagenet, plateau"}
    assert found["GE-θ⁺ is better than SE"].verdict == SUPPORTED
    assert found["SE is better than GE-θ"].verdict == CONTRADICTED
    assert {j.verdict for j in judgements if j.setting == "the paper's protocol"} == {INCONCLUSIVE}
    sentences = describe(judgements)
    assert "- Does not hold: SE is better than GE-θ (difference +1.00 points, p " in sentences
    assert "the paper's protocol" not in sentences  # where nothing was run


def test_verdicts_on_the_same_runs_are_corrected_for_their_number(tmp_path):
    """A difference that is significant by itself and not among the claims of Table 5."""
    errors = {"Baseline": [30.0, 30.5, 31.0], "GE-θ": [29.0, 29.5, 30.0], "GE-θ⁻": [28.6, 29.8, 31.0]}
    for label, values in errors.items():
        for seed, error in enumerate(values):
            but = {"schedule.iterations": 5}
            write_training(tmp_path / f"{label}{seed}", training(5, label), seed=seed, top1=error, but=but)
    runs, _ = read_runs(tmp_path)
    found = {j.claim.text: j for j in judge_all(Runs(runs), runs) if j.p is not None}
    alone = ttest_ind(errors["GE-θ"], errors["Baseline"], equal_var=False, alternative="less").pvalue
    assert alone < 0.05
    assert len(found) == 3
    judgement = found["GE-θ is better than the baseline"]
    assert (judgement.verdict, judgement.p) == (INCONCLUSIVE, pytest.approx(3 * alone))
