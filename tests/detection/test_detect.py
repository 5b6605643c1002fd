"""``python -m geexp.detect`` as a command: training, resuming, drawing, evaluating; and what it refuses."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from geexp.detect import training_arguments
from geexp.detection.evaluation import NUMBERS
from geexp.detection.fashion_coco import Recipe, make_fashion_coco
from geexp.report.comparison import compare_runs
from geexp.report.runs import read_runs
from tests.support.coco import annotations, write_coco

SET = Recipe(train=24, val=10, most_items=3, smallest=40)
SHORT = [
    *("experiment=demo_detection", "data=coco2014", "data.num_classes=10"),
    *("schedule.epochs=2", "feed.workers=0", "trainer.checkpoint_every_n_steps=1"),
]


@pytest.fixture
def detect(forked, tmp_path):
    """``detect("data.root=…", …)``: the finished process of ``python -m geexp.detect``."""
    return lambda *arguments, folder=tmp_path, **how: forked.run(folder, "detect", *arguments, **how)[0]


@pytest.fixture(scope="module")
def trained(forked, tmp_path_factory) -> tuple[Path, Path]:
    """A run of two epochs, and the folder of its images."""
    folder = tmp_path_factory.mktemp("detection")
    make_fashion_coco(folder / "set/coco", SET)
    for split in ("train", "val"):  # by COCO's names
        (folder / f"set/coco/{split}").rename(folder / f"set/coco/{split}2014")
        annotations = folder / f"set/coco/annotations/instances_{split}.json"
        annotations.rename(annotations.with_stem(f"instances_{split}2014"))
    (done,) = forked.run(folder, "detect", *SHORT, GEEXP_DATA=str(folder / "set"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(NUMBERS)
    return run_in(folder), folder / "set"


def at(trained: tuple[Path, Path]) -> dict[str, str]:
    return {"GEEXP_DATA": str(trained[1])}


def run_in(folder: Path) -> Path:
    (path,) = folder.glob("outputs/**/config_tree.txt")
    return path.parent


def rows(run: Path) -> list[dict]:
    lines = (run / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "time")} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_files_of_a_run(trained):
    run, _ = trained
    result = json.loads((run / "result.json").read_text())
    assert result["identity"]["detector"]["layout"] == "c4"
    assert result["identity"]["detector"]["backbone"] == "nothing"
    assert result["metrics"]["last"]["val/AP_large"] is None  # the images have no object beyond 96 pixels
    assert result["metrics"]["best"]["val/AP"] == max(row["val/AP"] for row in rows(run))
    assert result["complexity"]["params"] > 300_000
    assert [row["epoch"] for row in rows(run)] == [1, 2]
    assert rows(run)[1]["train/loss"] < rows(run)[0]["train/loss"]
    parts = sum(value for key, value in rows(run)[0].items() if key.startswith("train/loss_"))
    assert rows(run)[0]["train/loss"] == pytest.approx(parts)
    assert (run / "precision_recall.png").stat().st_size > 10_000
    assert {path.name for path in (run / "checkpoints").glob("*.ckpt")} >= {"best.ckpt", "last.ckpt"}


def test_a_killed_run_resumes_to_the_same_numbers(trained, forked, detect, tmp_path):
    whole, images = trained
    started = forked.start(tmp_path, "detect", *SHORT, GEEXP_DATA=str(images))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/**/previous.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(started.pids[0], signal.SIGKILL)
    (killed,) = started.end()
    assert killed.returncode == -signal.SIGKILL
    run = run_in(tmp_path)
    assert not (run / "result.json").exists()
    done = detect(*SHORT, "resume=true", GEEXP_DATA=str(images))
    assert done.returncode == 0, done.stderr
    assert "resum" in done.stderr
    assert rows(run) == rows(whole)
    ours, theirs = weights(run), weights(whole)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_predictions_are_drawn_and_printed(trained, detect, tmp_path):
    run, images = trained
    (image,) = list((images / "coco/val2014").iterdir())[:1]
    arguments = ["mode=predict", f"run={run}", "least_score=0", "format=json", f"out={tmp_path / 'found.png'}"]
    done = detect(*arguments, f"images={image}")
    assert done.returncode == 0, done.stderr
    (objects,) = json.loads(done.stdout)["images"].values()
    assert objects
    assert [one["score"] for one in objects] == sorted((one["score"] for one in objects), reverse=True)
    assert all(0 <= one["box"][0] < one["box"][2] <= 128 and one["class"] for one in objects)
    with Image.open(tmp_path / "found.png") as picture:
        assert min(picture.size) >= 128
    assert len(json.loads(detect(*arguments, "most=4", GEEXP_DATA=str(images)).stdout)["images"]) == 4


def test_defaults_are_the_papers_experiment():
    arguments = training_arguments(["ge=theta", "ge.extent=8", "mode=train"])
    chosen = {"model=resnet50", "data=coco2014", "detector=c4", "schedule=coco_faster_rcnn", "optim=coco"}
    assert chosen < set(arguments)
    assert arguments[-2:] == ["ge=theta", "ge.extent=8"]
    assert "ge=none" not in arguments
    assert training_arguments(["experiment=demo_detection"]) == ["experiment=demo_detection"]


def small(root: Path) -> Path:
    """A set by COCO's names, with 3 categories."""
    return write_coco(root, annotations(), "train2014", "val2014")


def without_an_image(root: Path) -> None:
    next((root / "val2014").iterdir()).unlink()


def cut_in_half(root: Path) -> None:
    path = root / "annotations/instances_train2014.json"
    path.write_text(path.read_text()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (without_an_image, [], ["1 of the 4 images", "data.root"]),
        (cut_in_half, [], ["instances_train2014.json", "cut short"]),
        (None, ["data.num_classes=80"], ["data.num_classes=80", "has 3 categories"]),
        (None, ["ge=theta", "extent=global"], ["ge.extent=global", "ge.extent=2, 4 or 8"]),
        (shutil.rmtree, [], ["instances_train2014.json", "data.root"]),
        (None, ["model=resnet8"], ["pre-activation", "resnet50"]),
        (None, ["detector=none"], ["detector=c4 or fpn"]),
        (None, ["data=imagenet"], ["has no boxes", "coco2014"]),
        (None, ["backbone_checkpoint=nowhere.pth"], ["backbone_checkpoint=nowhere.pth", "No such file"]),
        (None, ["backbone_checkpoint=seed0-*/last.ckpt"], ["seed0-*/last.ckpt", "python -m geexp.train model="]),
        (None, ["detector=fpn", "detector.anchor_sizes=[8]"], ["anchor_sizes", "one size for each"]),
        (None, ["trainer.overfit_batches=2"], ["limit_train_batches"]),
    ],
)
def test_mistakes_are_explained_in_one_message(detect, tmp_path, change, arguments, words):
    root = small(tmp_path / "coco")
    if change is not None:
        change(root)
    usual = ["model=resnet10_slim", f"data.root={root}", "data.num_classes=3", "feed.workers=0", "trainer=cpu"]
    kept = [word for word in usual if word.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    done = detect(*kept, *arguments)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_classifiers_run_is_refused(forked, detect, tmp_path):
    (done,) = forked.run(tmp_path, "train", "debug=one_batch", "logger=none")
    assert done.returncode == 0, done.stderr
    refused = detect("mode=predict", f"run={run_in(tmp_path)}")
    assert refused.returncode == 2
    assert "detector=none" in refused.stderr


@pytest.mark.slow
def test_two_processes_train_one_detector(trained, forked, tmp_path):
    _, images = trained
    first, second = forked.run(
        tmp_path, "detect", *SHORT, "trainer.devices=2", "trainer=cpu", ranks=2, GEEXP_DATA=str(images)
    )
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    assert len(rows(run_in(tmp_path))) == 2


def test_detectors_are_compared_in_the_report(trained, tmp_path):
    run, _ = trained
    copy = shutil.copytree(run, tmp_path / "run")
    (row,) = compare_runs([copy])
    assert row.top1_error is None
    assert "|  | mAP | best |" in (copy / "table.md").read_text()
    assert (copy / "curves.png").stat().st_size > 10_000
    (read,), left_out = read_runs(run)
    assert read.detector
    assert read.figure("map") == row.mean_ap
    assert left_out == []


def test_evaluation_measures_the_same_numbers(trained, forked, tmp_path):
    run, images = trained
    arguments = [f"run={run}", f"root={images / 'coco'}", "accelerator=cpu", "workers=0"]
    (done,) = forked.run(tmp_path, "evaluate", *arguments, "format=json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["identical"] is True
    assert {key.removeprefix("val/") for key in result["measured"]} == set(NUMBERS)
    (done,) = forked.run(tmp_path, "evaluate", *arguments)
    assert "AP50" in done.stdout
    assert "identical to the record" in done.stdout


@pytest.mark.parametrize("limit", ["debug=one_batch", "trainer.limit_val_batches=2"])
def test_a_limited_validation_is_measured_again_as_limited(trained, forked, detect, tmp_path, limit):
    done = detect(*SHORT, limit, "trainer.max_epochs=1", "optim.batch_size=4", **at(trained))
    assert done.returncode == 0, done.stderr
    run = run_in(tmp_path)
    (done,) = forked.run(tmp_path, "evaluate", f"run={run}", "accelerator=cpu", "workers=0", "format=json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identical"] is True


def test_an_analysis_of_a_detector_is_refused(trained, forked, tmp_path):
    (done,) = forked.run(tmp_path, "analyze", "analysis=gates", f"run={trained[0]}")
    assert done.returncode == 2
    assert "detector=c4" in done.stderr
    assert "Traceback" not in done.stderr
