"""Differences from the baseline by seed: statistics, costs, files."""

import csv
import json
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from geexp.report.curves import TRAIN, VAL, make_curve
from geexp.report.differences import Comparison, compare, holm, write_differences
from geexp.report.runs import read_runs
from tests.support.made_runs import training, write_training

ERRORS = {
    "Baseline": {0: 30.0, 1: 30.4, 2: 30.2},
    "SE": {0: 29.1, 1: 29.9, 2: 29.3, 3: 20.0},  # no baseline has seed 3
    "GE-θ⁻": {0: 30.1, 1: 30.3, 2: 30.4},
    "GE-θ": {1: 29.0},
}


@pytest.fixture
def comparison(tmp_path) -> Comparison:
    for label, errors in ERRORS.items():
        for seed, error in errors.items():
            write_training(tmp_path / f"runs/{label}{seed}", training(5, label), seed=seed, top1=error, epochs=20)
    (found,) = compare(read_runs(tmp_path / "runs")[0])
    return found


def test_pairs_are_runs_of_one_seed(comparison):
    found = {network.label: network.difference for network in comparison.networks}
    assert list(found) == ["baseline", "SE", "GE-θ⁻", "GE-θ"]
    assert found["baseline"] is None
    test = ttest_rel([29.1, 29.9, 29.3], [30.0, 30.4, 30.2])
    assert (found["SE"].n, found["SE"].mean) == (3, pytest.approx(-2.3 / 3))
    assert found["SE"].p == pytest.approx(test.pvalue)
    assert found["SE"].interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found["SE"].holm == pytest.approx(2 * test.pvalue)  # of two tests: one seed has none
    assert (found["GE-θ"].n, found["GE-θ"].mean, found["GE-θ"].interval) == (1, pytest.approx(-1.4), None)


def test_holm():
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_time_is_that_of_undisturbed_epochs_and_a_shorter_last_one_does_not_count(comparison):
    for run in comparison.networks[0].runs:
        rows = [{"epoch": n, "seconds": 10.0 if n < 4 else 99.0, "val/top1_error": 30.0} for n in range(1, 21)]
        rows.append({"epoch": 21, "seconds": 1.0, "val/top1_error": 30.0})
        for row in rows:
            row |= {"train/images": 500, "train/top1_error": 20.0}
        rows[-1] |= {"train/images": 20, "train/top1_error": 5.0}
        (run.folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    baseline = comparison.networks[0]
    assert baseline.epoch_seconds == 10.0
    assert baseline.train_error == 20.0
    assert baseline.memory == 1.0
    curve = make_curve(baseline.runs, (TRAIN, VAL), label="", style={})
    assert (curve.epochs[-1], curve.values[TRAIN][-2:], curve.values[VAL][-1]) == (21, [20.0, None], 30.0)


def test_files(comparison, tmp_path):
    written = write_differences([comparison], tmp_path / "out")
    name = "errors-resnet110-cifar10-preact_cifar"
    assert {path.name for path in written} == {"differences.md", "differences.csv", f"{name}.svg", f"{name}.png"}
    markdown = (tmp_path / "out/differences.md").read_text()
    assert "| SE | 27.07 ± 4.73 | 4 | 27.07 | 3 | -0.77 | -1.34 to -0.19 | " in markdown
    with (tmp_path / "out/differences.csv").open() as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    assert (rows["SE"]["seeds"], rows["SE"]["pairs"], rows["GE-θ"]["p"]) == ("0 1 2 3", "3", "")


def test_networks_with_several_seeds_are_shown_or_all(comparison, tmp_path):
    assert [network.label for network in comparison.shown] == ["baseline", "SE", "GE-θ⁻"]
    for label, seed in (("Baseline", 0), ("Baseline", 1), ("SE", 0)):
        write_training(tmp_path / f"one/{label}{seed}", training(5, label), seed=seed, epochs=20)
    (found,) = compare(read_runs(tmp_path / "one")[0])
    assert [network.label for network in found.shown] == ["baseline", "SE"]
    assert [row.label for row in found.brief.rows] == ["baseline", "SE"]


def test_a_setting_without_a_baseline_has_no_differences(tmp_path):
    write_training(tmp_path / "a", training(5, "SE"))
    write_training(tmp_path / "b", training(5, "GE-θ"))
    assert compare(read_runs(Path(tmp_path))[0]) == ()
