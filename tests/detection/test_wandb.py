"""A detector's run at W&B, and the dashboard that shows it."""

import json
from pathlib import Path

import pytest

from geexp.report.dashboard import make_dashboard, write_specification
from geexp.report.measured import Runs
from tests.support.coco import annotations, write_coco
from tests.support.wandb_files import Logged, dashboard_metrics, logged

SMALL = ["model=resnet10_slim", "detector=c4_small", "data.num_classes=3", "feed.workers=0", "trainer=cpu"]


@pytest.fixture(scope="module")
def run(forked, tmp_path_factory) -> tuple[Path, Logged]:
    folder = tmp_path_factory.mktemp("detector")
    write_coco(folder / "coco", annotations(), "train2014", "val2014")
    arguments = [*SMALL, "optim.batch_size=2", "debug=one_batch", "logger=wandb", "logger.group=coco"]
    (done,) = forked.run(folder, "detect", *arguments, GEEXP_DATA=str(folder), WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("outputs/**/result.json")
    (start,) = logged(path.parent)
    return path.parent, start


def test_picture_and_numbers_are_logged(run):
    folder, start = run
    assert {"precision_recall", "curves/history"} <= start.history[-1].keys()
    assert list(folder.glob("wandb/offline-run-*/files/media/images/precision_recall*.png"))
    result = json.loads((folder / "result.json").read_text())
    assert start.summary["last/AP"] == result["metrics"]["last"]["val/AP"]
    assert start.name.startswith("ResNet-10 slim baseline, coco2014, coco_faster_rcnn, ")


def test_the_dashboard_shows_logged_metrics(run, tmp_path):
    path = tmp_path / "specification.json"
    write_specification(make_dashboard("coco", entity="", project="geexp", runs=Runs([])), path)
    text = path.read_text()
    assert "| GE-θ (E8) | 28.6 | not run |  |" in text
    asked = set(dashboard_metrics(json.loads(text)["spec"]))
    _, start = run
    known = {"history": set(start.epochs[0]), "summary": set(start.summary), "config": set(start.config)}
    assert [(kind, key) for kind, key in asked if key not in known[kind]] == []
    assert ("summary", "last/AP") in asked
