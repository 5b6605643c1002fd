"""The feed benchmark: from the command to the file, with every row, and pixels as they should be."""

import json

import pytest

from geexp.benchmarks.feed_cases import PHOTOS, PIXEL_TARGETS, SMALL, SPEED_TARGETS, photo_cases
from geexp.benchmarks.photographs import make_photo_folder
from geexp.benchmarks.stopwatch import timed
from tests.config.test_entry_points import probe
from tests.support.configuration import data_config


def test_the_configurations_are_those_of_the_data_sets():
    for ours, name in ((PHOTOS, "imagenet"), (SMALL, "cifar10")):
        theirs = data_config(f"data={name}", "model=resnet50")
        for key in ("image_size", "channels", "mean", "std", "evaluation_crop", "augmentation"):
            assert getattr(ours, key) == getattr(theirs, key)


def test_every_target_is_measured():
    measured = {(case.name, path) for path in ("train", "eval") for case in photo_cases(path, 2)}
    assert set(SPEED_TARGETS) <= measured | {("resident", "small")}
    assert {key for key in PIXEL_TARGETS if key[1] != "decode"} <= measured


def test_processor_time_of_workers_is_counted():
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(1) as pool:
        timing = timed(lambda: pool.apply(_busy, (0.3,)))
    assert timing.images == 7
    assert timing.processor > 0.2


def _busy(seconds: float) -> int:
    import time

    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    return 7


@pytest.mark.slow
def test_from_command_to_file(run, tmp_path):
    make_photo_folder(tmp_path / "photos", classes=4, train=16, val=8)
    done = run("benchmark", "root=photos", "images=16", "batch_size=8", "rounds=1", "format=json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    written = tmp_path / "outputs/benchmarks/feed.json"
    assert json.loads(written.read_text()) == document
    assert str(written) in done.stderr
    expected = [(path, case.name) for path in ("train", "eval") for case in photo_cases(path, 2)]
    expected += [("small", "reference"), ("small", "resident")]
    assert [(row["case"], row["contender"]) for row in document["rows"] if row["seconds"]] == expected
    for row in document["rows"]:
        for seconds in row["seconds"].values():
            assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
    compared = {(row["contender"], row["case"]) for row in document["rows"] if "pixels" in row}
    assert compared >= set(PIXEL_TARGETS)
    pixels = [row for row in document["targets"] if row["name"].startswith("mean difference")]
    assert len(pixels) == len(PIXEL_TARGETS)
    assert all(row["met"] for row in pixels)
    assert document["environment"]["processors"] >= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "photos"]


@pytest.mark.slow
def test_without_a_root_images_are_made_and_a_table_is_shown(run, tmp_path):
    done = run("benchmark", "images=8", "batch_size=4", "rounds=1", "workers=1", "out=there.json", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "made 16 realistic images" in done.stderr
    assert "pack raw" in done.stdout
    assert "worst image" in done.stdout
    assert (tmp_path / "there.json").exists()
    assert not list(tmp_path.glob("geexp*"))


@pytest.mark.parametrize("flag", ["--help", "--cfg=job", "what=operators", "root=nowhere"])
def test_nothing_heavy_is_imported_before_measuring(flag, tmp_path):
    assert probe("benchmark", flag, cwd=tmp_path).strip().endswith("LOADED []")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "what=operators",
            "what=operators: not allowed. Did you mean operator? Allowed: operator, step, trainer, startup, feed.",
        ),
        ("root=nowhere", "root=nowhere: needs the folders train and val"),
        ("images=10", "images=10: does not fill one batch of batch_size=64"),
        ("rounds=0", "rounds=0: must be at least 1"),
    ],
)
def test_mistakes(run, arguments, expected):
    done = run("benchmark", *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
