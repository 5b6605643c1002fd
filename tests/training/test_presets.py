"""Presets really run, scaled down: ``experiment=… scale=smoke`` on small data in the official formats."""

import json
from pathlib import Path

import pytest

from geexp.registry import config_directory
from geexp.runs.job import make_job
from tests.conftest import python
from tests.support.cifar import TRAIN, SmallArchive, checksums, small_cifar10, small_cifar100
from tests.support.configuration import train_config
from tests.support.photos import CLASSES, photo, write_classes

PRESETS = sorted(path.stem for path in Path(config_directory()).glob("experiment/*.yaml"))
SMOKE = ["scale=smoke", "trainer=cpu", "logger=none"]
SWEEP = ["-m", "launcher=inline"]


@pytest.fixture
def archives(tmp_path) -> list[SmallArchive]:
    """CIFAR-10 and -100 with some images of their first two classes, and three classes of ImageNet, in one folder."""
    for split, images in (("train", 4), ("val", 2)):
        write_classes(tmp_path / "imagenet" / split, CLASSES, images, lambda label, i: photo(10 * label + i, (64, 48)))
    ten, hundred = small_cifar10(tmp_path), small_cifar100(tmp_path, classes=2)
    for one in (ten, hundred):
        one.pack()
    return [ten, hundred]


def results(archives: list[SmallArchive], *overrides: str, seconds: int) -> dict[str, dict]:
    """Train in one process; the results by the names of their folders."""
    root = archives[0].root
    command = ["-c", TRAIN, checksums(*archives), *overrides]
    done = python(*command, cwd=root, timeout=seconds, GEEXP_DATA=str(root))
    assert done.returncode == 0, done.stderr[-5000:]
    written = {str(path.parent.relative_to(root / "outputs")): path for path in root.glob("outputs/**/result.json")}
    return {folder: json.loads(path.read_text()) for folder, path in written.items()}


def folder_of(preset: str, *overrides: str) -> str:
    return make_job(train_config(f"experiment={preset}", *overrides)).slug


@pytest.mark.slow
def test_one_preset_of_each_kind(archives):
    """Files, arrays, and the embedded images; epochs with a plateau, iterations, and a cosine."""
    presets = ["table4_theta_plus", "table5_resnet110_cifar100_theta_minus", "demo"]
    found = results(archives, *SWEEP, f"experiment={','.join(presets)}", *SMOKE, seconds=120)
    shufflenet, resnet, demo = (found[folder_of(preset, *SMOKE)] for preset in presets)
    assert len(found) == 3
    for result in (shufflenet, resnet, demo):
        assert result["identity"]["scale"] == result["config"]["scale"] == "smoke"
        assert result["identity"]["data"]["keep_classes"] == result["identity"]["data"]["num_classes"] == 2
        assert result["metrics"]["last"]["train/images"] == 2 * 4
    assert shufflenet["feed"] == {"name": "folder"} | {s: {"fallbacks": 0, "skipped": {}} for s in ("train", "val")}
    assert resnet["feed"]["name"] == demo["feed"]["name"] == "resident"
    assert shufflenet["metrics"]["last"]["val/images"] == 4  # of the six in the folder
    assert (shufflenet["epochs"], resnet["epochs"], demo["epochs"]) == (1, 3, 1)  # six iterations, two an epoch


@pytest.mark.slow
def test_every_preset_runs_one_batch(archives):
    """In one multirun, in one process. Detectors, whose data sets keep all their classes, are tried elsewhere."""
    one_batch = [*SMOKE, "debug=one_batch"]
    found = results(archives, *SWEEP, "experiment=glob([table*,figure*,demo])", *one_batch, seconds=3600)
    classifiers = [preset for preset in PRESETS if preset.startswith(("table", "figure")) or preset == "demo"]
    expected = {folder_of(preset, *one_batch) for preset in classifiers}
    assert found.keys() == expected
    for folder, result in found.items():
        assert result["status"] == "completed"
        assert result["identity"]["scale"] == "smoke"
        assert result["metrics"]["last"]["train/images"] == 4
        assert folder.split("/")[0].endswith("-smoke")
