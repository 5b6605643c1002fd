"""Several ranks train and validate one network; only rank 0 writes and prints.

They are started as torchrun starts them; by torchrun itself in the tests that are marked as slow.
"""

import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from geexp.data.datasets import open_dataset
from geexp.training.run import train
from tests.conftest import python
from tests.support.configuration import job, train_config
from tests.support.runs import checkpoint, history, same_end, trouble, weights

# Two epochs of ten steps; no number of ranks but one divides the images that they are validated with.
SETTINGS = ["trainer=cpu", "ge=none", "logger=none", "trainer.max_epochs=2", "data=fashion_mnist"]
SETTINGS += ["optim.batch_size=32", "optim.lr=0.1"]
COUNTS = {"val/images", "val/top1_wrong", "val/top5_wrong"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """320 and 997 of the embedded images, in the files that Fashion-MNIST comes in."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    mini = train_config()
    for split, n in (("train", 320), ("t10k", 997)):
        images = open_dataset(mini.data, mini.feed, train=split == "train")
        for kind, array in (("images-idx3", images.images[:n]), ("labels-idx1", images.labels[:n])):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return f"data.root={root}"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("trained")
    assert train(job(run, *SETTINGS, data)) is not None
    return run


def test_1_2_and_3_processes_count_the_same(forked, trained, tmp_path):
    counts = []
    for ranks in (None, 1, 2, 3):
        number = [f"devices={ranks or 1}", "accelerator=cpu", "format=json"]
        first, *others = forked.run(tmp_path, "evaluate", f"run={trained}", "which=last", *number, ranks=ranks)
        assert (first.returncode, first.stderr) == (0, "")
        assert [(other.returncode, other.stdout, other.stderr) for other in others] == [(0, "", "")] * len(others)
        measured = json.loads(first.stdout)
        assert measured["identical"] is True  # to what was counted while it was trained
        counts.append({key: measured["measured"][key] for key in COUNTS})
    assert counts == counts[:1] * 4
    assert counts[0]["val/images"] == 997
    assert 100 < counts[0]["val/top1_wrong"] < 850  # it has learnt something (chance is 897), and not all


def test_2_processes_train(forked, data, tmp_path):
    arguments = [*SETTINGS, data, "trainer.devices=2"]
    first, second = forked.run(tmp_path, "train", *arguments, "logger=csv", ranks=2)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    (run,) = (path.parent for path in tmp_path.glob("outputs/**/result.json"))
    # Every image is counted once in every epoch, though one rank has 499 of them and the other 498.
    rows = history(run)
    assert [(row["epoch"], row["step"], row["train/images"], row["val/images"]) for row in rows] == [
        (1, 10, 320, 997),
        (2, 20, 320, 997),
    ]
    # Only rank 0 prints and writes, once.
    assert first.stdout.startswith("top-1 error")
    assert len(first.stdout.splitlines()) == 1
    assert (second.stdout, second.stderr) == ("", "")
    assert (run / "train.log").read_text().count("training into") == 1
    assert first.stderr.count("epoch 1/2") == 1
    assert len(list(run.glob("csv/*/metrics.csv"))) == 1
    files = {path.name for path in run.iterdir()}
    assert files == {
        ".hydra", "checkpoints", "config.yaml", "config_tree.txt", "csv", "data.json", "history.jsonl", "result.json",
        "run.lock", "status.json", "train.log",
    }  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    result = json.loads((run / "result.json").read_text())
    assert result["devices"] == {"count": 2, "images_per_device": 16, "accumulate": 1, "images_per_batchnorm": 16}
    (optimizer,) = checkpoint(run)["optimizer_states"]
    assert [group["base_lr"] for group in optimizer["param_groups"]] == [0.1, 0.1, 0.2]  # not scaled


def test_a_step_is_the_same_however_it_is_divided(forked, data, tmp_path):
    """Among ranks and among batches, with nothing in the network that sees a batch as a whole."""
    callback = trouble("WithoutNormalisation")
    arguments = [*SETTINGS, data, callback, "optim.lr=0.01", "trainer.max_epochs=1", "trainer.limit_val_batches=1"]
    whole, in_halves, in_quarters = (tmp_path / name for name in ("whole", "halves", "quarters"))
    train(job(whole, *arguments))
    train(job(in_halves, *arguments, "trainer.accumulate=2"))
    divided = ["trainer.devices=2", "trainer.accumulate=2", f"hydra.run.dir={in_quarters}"]
    first, second = forked.run(tmp_path, "train", *arguments, *divided, ranks=2)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    for run in (in_halves, in_quarters):
        for name, value in weights(run).items():
            torch.testing.assert_close(value, weights(whole)[name], rtol=1e-3, atol=1e-5, msg=f"{run.name}: {name}")


@pytest.mark.parametrize(
    ("entry", "ranks", "devices", "parts"),
    [
        ("train", 2, "trainer.devices=1", ["trainer.devices=1", "2 processes", "trainer.devices=2", "-m geexp.train"]),
        ("train", 2, "trainer.devices=2 trainer.sync_batchnorm=true", ["trainer.sync_batchnorm=true", "GPUs only"]),
        ("train", 2, "trainer.devices=2 optim.batch_size=63", ["optim.batch_size=63", "2 devices"]),
        ("evaluate", None, "devices=3", ["geexp.evaluate: devices=3", "--nproc-per-node=3 -m geexp.evaluate"]),
        ("evaluate", 2, "devices=1", ["geexp.evaluate: devices=1, but 2", "Set devices=2", "python -m geexp.evaluate"]),
    ],
)
def test_a_wrong_number_is_refused_once(forked, trained, tmp_path, entry, ranks, devices, parts):
    arguments = ["trainer=cpu", "logger=none"] if entry == "train" else [f"run={trained}"]
    first, *others = forked.run(tmp_path, entry, *arguments, *devices.split(), ranks=ranks, grace=0)
    assert (first.returncode, first.stdout) == (2, "")
    assert [(other.stdout, other.stderr) for other in others] == [("", "")] * len(others)
    *_, message = first.stderr.splitlines()
    assert message.startswith(f"geexp.{entry}: ")
    for part in parts:
        assert part in message
    assert not list(tmp_path.glob("outputs/**/result.json"))


@pytest.mark.slow
def test_by_torchrun_itself(data, trained, tmp_path):
    def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        return python(*start, *arguments, cwd=tmp_path)

    for ranks in (2, 3):
        arguments = [f"run={trained}", "which=last", f"devices={ranks}", "accelerator=cpu", "format=json"]
        done = torchrun(ranks, "geexp.evaluate", *arguments)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["identical"] is True
    once, again = tmp_path / "once", tmp_path / "again"
    for run in (once, again):
        done = torchrun(2, "geexp.train", *SETTINGS, data, "trainer.devices=2", f"hydra.run.dir={run}")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
    same_end(again, once)
    refused = torchrun(2, "geexp.train", "trainer=cpu", "trainer.devices=1")
    assert refused.returncode == 1  # torchrun knows no other
    assert "exitcode  : 2" in refused.stderr
    assert refused.stderr.count("geexp.train: trainer.devices=1") == 1
