"""The official CIFAR-10 and CIFAR-100 files in ``GEEXP_DATA``: trained on and evaluated through both feeds."""

import json
import os
from pathlib import Path

import pytest
import torchvision.datasets as tv

from geexp.config.schema import FeedConfig
from geexp.data.datasets import open_dataset
from tests.support.configuration import data_config

ROOT = Path(os.environ.get("GEEXP_DATA", "data"))
SETS = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}

pytestmark = [
    pytest.mark.real_cifar,
    pytest.mark.skipif(
        not all((ROOT / official.base_folder).is_dir() for official in SETS.values()),
        reason="GEEXP_DATA has no cifar-10-batches-py and cifar-100-python",
    ),
]


@pytest.mark.parametrize("name", SETS)
def test_read_as_torchvision_reads_it(name):
    for train in (True, False):
        ours = open_dataset(data_config(f"data={name}", f"data.root={ROOT}"), FeedConfig("reference"), train=train)
        theirs = SETS[name](str(ROOT), train=train)
        assert len(ours) == (50_000 if train else 10_000)
        assert (ours.images == theirs.data).all()
        assert ours.labels.tolist() == theirs.targets


@pytest.mark.parametrize("feed", ["resident", "reference"])
@pytest.mark.parametrize("name", SETS)
def test_trained_and_evaluated(run, tmp_path, name, feed):
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=40", "logger=none"]
    chosen = [f"data={name}", f"data.root={ROOT.absolute()}", f"feed={feed}", "model=resnet8", "ge=theta"]
    done = run("train", *chosen, "schedule=preact_cifar", "optim=cifar", *few)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("outputs/**/result.json")
    last = json.loads(result.read_text())["metrics"]["last"]
    assert last["val/images"] == 10_000
    chance = 90.0 if name == "cifar10" else 99.0
    assert last["val/top1_error"] < chance - 0.5  # five standard deviations over 10,000 images
    again = run("evaluate", f"run={result.parent}", "which=last", f"root={ROOT.absolute()}", "format=json")
    assert again.returncode == 0, again.stderr
    measured = json.loads(again.stdout)
    assert measured["identical"] is True
    assert measured["measured"]["val/top1_error"] == last["val/top1_error"]
