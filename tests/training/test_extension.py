"""``resume_from``: a longer run starts where a shorter one has ended, and ends as if trained from the start."""

import re
import shutil
from pathlib import Path

import pytest

from geexp.config.errors import ConfigError, DataError
from geexp.runs.job import make_job
from geexp.runs.run import Run
from geexp.training.checkpoints import load_checkpoint
from geexp.training.extension import why_not
from geexp.training.run import train
from tests.support.configuration import job
from tests.support.runs import history, same_end, trouble

pytestmark = pytest.mark.usefixtures("one_thread")

# Steps of the learning rate after epochs 1 and 3, three steps an epoch, the EMA as further state.
SETTINGS = ["trainer=cpu", "ge=none", "logger=none", "optim.batch_size=32", "callbacks=ema", "seed=3"]
SETTINGS += ["trainer.limit_train_batches=3", "trainer.limit_val_batches=2"]
STEPS = ["schedule=fixed100", "schedule.milestones=[1,3]"]
PLATEAU = ["schedule=plateau", "schedule.patience=0", "schedule.threshold=0.9"]
ITERATIONS = ["schedule=coco_faster_rcnn", "schedule.warmup=0"]


def trained(folder: Path, *overrides: str) -> Path:
    assert train(job(folder, *SETTINGS, *overrides)) is not None
    return folder


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("short"), *STEPS, "trainer.max_epochs=1")


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ([*STEPS, "trainer.max_epochs=2"], [*STEPS, "trainer.max_epochs=3"]),
        ([*PLATEAU, "schedule.epochs=2"], [*PLATEAU, "schedule.epochs=3"]),
        ([*ITERATIONS, "schedule.iterations=6"], [*ITERATIONS, "schedule.iterations=8"]),
    ],
    ids=["max_epochs", "plateau", "iterations"],
)
def test_the_longer_run_ends_as_one_from_the_start(tmp_path, short, whole):
    reference = trained(tmp_path / "reference", *whole)
    source = trained(tmp_path / "source", *short)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    run = trained(tmp_path / "run", *whole, f"resume_from={source}")
    same_end(run, reference)
    ours, theirs = load_checkpoint(run / "checkpoints/best.ckpt"), load_checkpoint(reference / "checkpoints/best.ckpt")
    assert ours.info.metrics == theirs.info.metrics
    assert make_job(ours.config).identity == make_job(theirs.config).identity
    assert Run(run).result.metrics["best"]["epoch"] == Run(reference).result.metrics["best"]["epoch"]
    assert Run(run).result.identity == Run(reference).result.identity
    assert {path: path.read_bytes() for path in before} == before  # the shorter run is left as it was


def test_stopped_after_its_start_it_resumes_its_own(one_epoch, tmp_path):
    longer = [*STEPS, "trainer.max_epochs=3", f"resume_from={one_epoch}"]
    reference = trained(tmp_path / "reference", *STEPS, "trainer.max_epochs=3")
    with pytest.raises(SystemExit):
        train(job(tmp_path / "run", *SETTINGS, *longer, trouble("Sender", signals=[15], before="training", epoch=1)))
    assert history(tmp_path / "run") == history(one_epoch)
    moved = one_epoch.rename(tmp_path / "moved")
    try:
        same_end(trained(tmp_path / "run", *longer), reference)
    finally:
        moved.rename(one_epoch)


# The shorter run's settings, the longer one's, the steps of each finished epoch, and why it cannot go on, if it cannot.
CASES = [
    (["schedule.epochs=4", "trainer.max_epochs=2"], ["schedule.epochs=4"], [3, 6], None),  # a cosine that was cut
    ([*STEPS, "schedule.epochs=2"], [*STEPS, "schedule.milestones=[1,2]"], [3, 6], None),  # a later milestone
    ([*STEPS, "schedule.epochs=2"], ["schedule=fixed100", "schedule.milestones=[1]"], [3, 6], None),
    (
        [*STEPS, "schedule.epochs=2"],
        [*STEPS, "schedule.milestones=[1,2]"],
        [3, 6, 9],
        r"learning rates .*=\[1, 2\] \(there",
    ),
    (["schedule.epochs=4"], ["schedule.epochs=5"], [3], r"learning rates .*: schedule.epochs=5 \(there: 4\)"),
    (STEPS, PLATEAU, [3], "learning rates .*: .*schedule.kind=plateau"),
    (PLATEAU, [*PLATEAU, "schedule.patience=1"], [3], "learning rates .*: schedule.patience=1"),
    (STEPS, [*STEPS, "optim.lr=0.2"], [3], r"other settings .*: optim.lr=0.2 \(there: 0.025\)\. .*length only"),
    ([*STEPS, "trainer.max_epochs=2"], [*STEPS, "trainer.max_epochs=1"], [3, 6], r"longer .*max_epochs=1 \(there: 2\)"),
    ([*ITERATIONS, "schedule.iterations=6"], [*ITERATIONS, "schedule.iterations=7"], [3, 6], None),
    ([*ITERATIONS, "schedule.iterations=5"], [*ITERATIONS, "schedule.iterations=7"], [3, 5], "within an epoch"),
    ([*ITERATIONS, "trainer.max_epochs=1"], ITERATIONS, [3], None),
]


@pytest.mark.parametrize(("short", "longer", "steps", "reason"), CASES)
def test_a_run_goes_on_only_from_where_it_would_have_come_by(tmp_path, short, longer, steps, reason):
    rows = [{"epoch": epoch, "step": step} for epoch, step in enumerate(steps, 1)]
    found = why_not(job(tmp_path, *longer), job(tmp_path, *short), rows, step=steps[-1])
    assert found is None if reason is None else re.search(reason, found), found


def test_what_cannot_be_extended_is_refused_before_anything_is_built(one_epoch, tmp_path):
    for source, error, named in (
        (one_epoch, ConfigError, "learning rates.*schedule.kind=cosine"),
        ("nowhere", DataError, "there is no such folder"),
        (tmp_path, DataError, "there is no checkpoint"),
    ):
        with pytest.raises(error, match=rf"resume_from={source}: .*{named}"):
            trained(tmp_path / "run", "schedule.epochs=5", f"resume_from={source}")
    assert not (tmp_path / "run/checkpoints").exists()


def test_before_a_run_starts_anew_the_shorter_one_beside_it_is_named(one_epoch, tmp_path, caplog):
    caplog.set_level("INFO")
    source = shutil.copytree(one_epoch, tmp_path / "seed3-1")
    longer = [*STEPS, "trainer.max_epochs=2"]
    with pytest.raises(SystemExit):
        train(job(tmp_path / "seed3-2", *SETTINGS, *longer, trouble("Sender", signals=[15], before="training")))
    (line,) = [line for line in caplog.messages if str(source) in line]
    assert "trainer.max_epochs=2 (there: 1) only and has finished 1 epoch." in line
    assert line.endswith(f"resume_from={source}")
    caplog.clear()
    # The new run has a checkpoint, too, from before its first step: the further one is taken.
    trained(tmp_path / "seed3-2", *longer, f"resume_from={source}")
    assert any(f"going on from {source}" in line for line in caplog.messages)
    caplog.clear()
    trained(
        tmp_path / "seed3-3",
        "schedule=fixed100",
        "schedule.milestones=[1]",
        "schedule.factor=0.5",
        "trainer.max_epochs=1",
    )
    (line,) = [line for line in caplog.messages if "cannot be continued" in line]
    assert "schedule.factor=0.5" in line
