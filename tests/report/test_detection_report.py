"""The detection experiment in the report: what fills its two rows, what is set apart, what stays out of the rest."""

from copy import deepcopy
from pathlib import Path

import pytest
from rich.console import Console

from geexp.report.claims import INCONCLUSIVE, SUPPORTED
from geexp.report.comparison import trained
from geexp.report.page import page
from geexp.report.paper_tables import print_table, write_tables
from geexp.report.report import make_report
from geexp.report.rows import DETECTION, rows_of
from geexp.runs.identity import identity
from tests.support.made_runs import paper_identity, write_detector, write_run


def cells(folder: Path) -> list:
    (table,) = make_report(folder, [DETECTION]).tables
    return table.cells


def test_measured_stands_beside_27_3_and_28_6(tmp_path):
    for seed, baseline, theta in ((0, 27.0, 28.4), (1, 27.4, 28.6)):
        write_detector(tmp_path / f"baseline-{seed}", 0, baseline, seed=seed)
        write_detector(tmp_path / f"theta-{seed}", 1, theta, seed=seed)
    baseline, theta = cells(tmp_path)
    assert (baseline.printed, str(baseline.measured)) == (27.3, "27.20 ± 0.28 (n=2)")
    assert (theta.printed, str(theta.measured)) == (28.6, "28.50 ± 0.14 (n=2)")
    assert theta.difference == pytest.approx(-0.1)
    assert baseline.elsewhere == theta.elsewhere == ()
    report = make_report(tmp_path, [DETECTION])
    (judged,) = [one for one in report.judgements if one.claim.where == "detection"]
    assert (judged.verdict, judged.reason) == (SUPPORTED, "difference +1.30 points")
    written = {path.name: path.read_text() for path in write_tables(report, tmp_path / "report")}
    assert "| GE-θ (E8) | 28.6 | 28.50 ± 0.14 (n=2) | -0.10 |" in written["detection.md"]
    assert [row["mAP, %"] for row in trained(report.runs).rows] == ["27.20 ± 0.28 (n=2)", "28.50 ± 0.14 (n=2)"]


@pytest.mark.parametrize(
    ("backbone", "differences"),
    [
        (None, {"backbone": ("nothing", "figure2_theta_e8")}),
        ("torchvision's", {"backbone": ("weights of another origin", "figure2_theta_e8")}),
        ({"trainer.max_epochs": 90}, {"backbone's trainer.max_epochs": (90, 300)}),
        ({"trainer.precision": "bf16-mixed"}, {}),
    ],
)
def test_a_backbone_that_is_not_the_papers_sets_a_detector_apart(tmp_path, backbone, differences):
    if isinstance(backbone, dict):
        known = deepcopy(identity(rows_of(DETECTION)[1].training.backbone.config))
        for key, value in backbone.items():
            group, name = key.split(".")
            known[group][name] = value
        backbone = known
    write_detector(tmp_path / "theta", 1, 28.0, backbone=backbone)
    theta = cells(tmp_path)[1]
    assert (theta.measured is None) == bool(differences)
    assert [other.differences for other in theta.elsewhere] == ([differences] if differences else [])


def test_the_other_tables_do_not_take_a_detector_for_a_classifier(tmp_path):
    write_detector(tmp_path / "detector", 0, 27.0)
    write_run(tmp_path / "classifier", paper_identity(2, 1), 23.1)
    report = make_report(tmp_path, ["1", "2", DETECTION])
    assert report.left_out == ()
    assert len(report.runs) == 2
    assert {cell.elsewhere for table in report.tables for cell in table.cells} == {()}
    assert str(report.tables[1].rows[1].cells["top1"].measured) == "23.10 (n=1, BN over 256)"
    assert str(report.tables[2].cells[0].measured) == "27.00 (n=1)"
    shown = page(report)
    assert "mAP 27.00 %" in shown
    assert "265 tensors loaded" in shown
    assert [one.verdict for one in report.judgements if one.claim.where == "detection"] == [INCONCLUSIVE]


def test_what_is_not_run_says_which_sweep_runs_it(tmp_path):
    console = Console(record=True, width=200, quiet=False, file=(tmp_path / "printed").open("w"))
    print_table(make_report(tmp_path / "none", [DETECTION]).tables[0], console)
    text = console.export_text()
    assert "27.3  not run" in text
    assert "python -m geexp.train +sweep=coco data.root=/data/coco trainer=gpu" in text
