"""Runs side by side, and the paper's numbers."""

from pathlib import Path

import pytest

from geexp.config.labels import ge_label
from geexp.report.comparison import compare_runs
from geexp.report.numbers import network_of, paper, table_rows


def test_unfinished_runs_are_shown_as_such(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    rows = compare_runs([tmp_path / "a"], out=tmp_path)
    assert rows[0].top1_error is None
    assert "not finished" in capsys.readouterr().out


def test_the_papers_numbers():
    assert [len(table_rows(n)) for n in range(1, 7)] == [5, 6, 6, 7, 5, 5]
    assert {row["label"]: row["top1"] for row in table_rows(2)}["GE-θ⁺"] == 21.88
    assert paper()["detection"]["rows"][1]["map"] == 28.6
    assert network_of(table_rows(1)[1]) == {
        "name": "resnet50", "ge": "theta", "extent": "global", "stages": [2], "pool": "avg",
    }  # fmt: skip
    assert network_of(table_rows(6)[1])["pool"] == "max"


def test_labels_are_the_papers():
    assert ge_label({"variant": "none"}) == "baseline"
    assert ge_label({"variant": "theta_minus", "extent": 4, "stages": [2, 3, 4, 5], "pool": "max"}) == "GE-θ⁻ (E4, max)"
    assert ge_label({"variant": "se", "reduction": 8}) == "SE (r = 8)"
    assert ge_label({"variant": "theta", "extent": "global", "stages": [4]}) == "GE-θ (stage 4)"


def test_the_published_table_is_what_its_runs_give(run, tmp_path):
    published = Path(__file__).parents[2] / "outputs/published/demo"
    done = run("report", f"runs={published}", f"out={tmp_path}", "tables=none", "figures=none")
    assert done.returncode == 0, done.stderr
    for name in ("table.md", "trained.md"):
        assert (tmp_path / name).read_text() == (published / name).read_text()
    assert "n=3" in (published / "trained.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    for label in ("baseline", "SE", "GE-θ⁻", "GE-θ", "GE-θ⁺"):
        assert f"│ {label} " in done.stdout


@pytest.mark.slow
def test_runs_that_differ_have_labels_that_differ(run, tmp_path):
    one_batch = ["debug=one_batch", "logger=none", "ge=theta"]
    for change in ([], ["optim.lr=0.5"], ["data.augmentation.flip=false"]):
        assert run("train", *one_batch, *change).returncode == 0
    shown = run("report", "tables=none", "figures=none").stdout
    assert "data.augmentation.flip=True optim.lr=0.5" in shown
    assert "data.augmentation.flip=False optim.lr=0.025" in shown
