"""``python -m geexp.detect`` as a command: training, resuming, drawing, evaluating; and what it refuses."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from geexp.analysis.export import export
from geexp.config.errors import ConfigError
from geexp.config.schema import ExportConfig
from geexp.detect import training_arguments
from geexp.detection.evaluation import NUMBERS
from geexp.detection.fashion_coco import Recipe, make_fashion_coco
from geexp.report.comparison import compare_runs
from geexp.report.dashboard import make_dashboard, write_specification
from geexp.report.measured import Runs
from geexp.report.runs import read_runs
from tests.support.coco import annotations, write_coco
from tests.support.runs import history, only_run, same_weights
from tests.support.wandb_files import dashboard_metrics, logged

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
    """A run of two epochs, logged to W&B, and the folder of its images."""
    folder = tmp_path_factory.mktemp("detection")
    make_fashion_coco(folder / "set/coco", SET)
    for split in ("train", "val"):  # by COCO's names
        (folder / f"set/coco/{split}").rename(folder / f"set/coco/{split}2014")
        annotations = folder / f"set/coco/annotations/instances_{split}.json"
        annotations.rename(annotations.with_stem(f"instances_{split}2014"))
    variables = {"GEEXP_DATA": str(folder / "set"), "WANDB_MODE": "offline"}
    (done,) = forked.run(folder, "detect", *SHORT, "logger=wandb", **variables)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(NUMBERS)
    return only_run(folder), folder / "set"


def test_files_of_a_run(trained):
    run, _ = trained
    result = json.loads((run / "result.json").read_text())
    assert result["identity"]["detector"]["layout"] == "c4"
    assert result["identity"]["detector"]["backbone"] == "nothing"
    assert result["metrics"]["last"]["val/AP_large"] is None  # the images have no object beyond 96 pixels
    first, second = rows = history(run)
    assert result["metrics"]["best"]["val/AP"] == max(row["val/AP"] for row in rows)
    assert result["complexity"]["params"] > 300_000
    assert [row["epoch"] for row in rows] == [1, 2]
    assert second["train/loss"] < first["train/loss"]
    parts = sum(value for key, value in first.items() if key.startswith("train/loss_"))
    assert first["train/loss"] == pytest.approx(parts)
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
    run = only_run(tmp_path)
    assert not (run / "result.json").exists()
    done = detect(*SHORT, "resume=true", GEEXP_DATA=str(images))
    assert done.returncode == 0, done.stderr
    assert "resum" in done.stderr
    assert history(run) == history(whole)
    same_weights(run, whole)


def test_damaged_images_are_skipped_on_request(trained, detect, tmp_path):
    shutil.copytree(trained[1], tmp_path / "set")
    damaged = [sorted((tmp_path / f"set/coco/{split}2014").iterdir())[:2] for split in ("train", "val")]
    for path in (*damaged[0], *damaged[1]):
        path.write_text("no image")
    done = detect(
        *SHORT,
        "schedule.warmup=0",
        "schedule.epochs=1",
        "feed.on_error=skip",
        "optim.batch_size=2",
        GEEXP_DATA=f"{tmp_path}/set",
    )
    assert done.returncode == 0, done.stderr
    feed = json.loads((only_run(tmp_path) / "result.json").read_text())["feed"]
    assert [sorted(feed[split]["skipped"]) for split in ("train", "val")] == [
        [str(path) for path in d] for d in damaged
    ]


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


def without_an_image(root: Path) -> None:
    next((root / "val2014").iterdir()).unlink()


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (without_an_image, [], ["1 of the 4 images", "data.root"]),
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
    root = write_coco(tmp_path / "coco", annotations(), "train2014", "val2014")  # 3 categories
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
    refused = detect("mode=predict", f"run={only_run(tmp_path)}")
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
    assert len(history(only_run(tmp_path))) == 2


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


def test_a_limited_validation_is_measured_again_as_limited(trained, forked, detect, tmp_path):
    limits = ["trainer.limit_val_batches=2", "trainer.max_epochs=1", "optim.batch_size=4"]
    done = detect(*SHORT, *limits, GEEXP_DATA=str(trained[1]))
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    (done,) = forked.run(tmp_path, "evaluate", f"run={run}", "accelerator=cpu", "workers=0", "format=json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identical"] is True


def test_an_analysis_of_a_detector_is_refused(trained, forked, tmp_path):
    (done,) = forked.run(tmp_path, "analyze", "analysis=gates", f"run={trained[0]}")
    assert done.returncode == 2
    assert "detector=c4" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_detector_is_not_exported(trained):
    with pytest.raises(ConfigError, match=r"detector=c4, .* needs a classifier\. .*geexp\.evaluate"):
        export(ExportConfig(run=str(trained[0])))


def test_pictures_and_numbers_are_logged_to_wandb(trained):
    run, _ = trained
    (start,) = logged(run)
    assert {"precision_recall", "curves/history"} <= start.history[-1].keys()
    assert list(run.glob("wandb/offline-run-*/files/media/images/precision_recall*.png"))
    assert start.summary["last/AP"] == json.loads((run / "result.json").read_text())["metrics"]["last"]["val/AP"]
    assert start.name.startswith("demo_detection, data=coco2014, ")


def test_the_dashboard_shows_logged_metrics(trained, tmp_path):
    path = tmp_path / "specification.json"
    write_specification(make_dashboard("coco", entity="", project="geexp", runs=Runs([])), path)
    text = path.read_text()
    assert "| GE-θ (E8) | 28.6 | not run |  |" in text
    asked = set(dashboard_metrics(json.loads(text)["spec"]))
    (start,) = logged(trained[0])
    known = {"history": set(start.epochs[0]), "summary": set(start.summary), "config": set(start.config)}
    assert [(kind, key) for kind, key in asked if key not in known[kind]] == []
    assert ("summary", "last/AP") in asked
