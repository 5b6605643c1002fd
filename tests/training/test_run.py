"""Whole runs as a user starts them: their files, resuming, and evaluation."""

import json
import math
import subprocess

import pytest
import torch

from geexp.config.schema import EvaluateConfig
from geexp.training.checkpoints import load_checkpoint
from geexp.training.classification import Classification
from geexp.training.evaluation import evaluate
from geexp.training.network import network_of
from geexp.training.run import train
from tests.conftest import python
from tests.support.configuration import job, train_config
from tests.support.photos import write_classes
from tests.support.runs import history, only_run, weights

# Three short epochs that learn something.
SHORT = ["trainer.limit_train_batches=20", "trainer.limit_val_batches=5", "schedule.epochs=3", "logger=none"]


@pytest.fixture
def run(forked, tmp_path):
    return lambda entry, *arguments: forked.run(tmp_path, entry, *arguments)[0]


def test_a_run_from_start_to_evaluation(run, tmp_path):
    done = run("train", "ge=theta_plus", *SHORT)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    assert str(folder) in done.stdout
    assert len(done.stdout.splitlines()) == 1  # results only; the tree and the progress are on standard error
    assert "├── optim" in done.stderr
    assert "epoch 3/3" in done.stderr

    result = json.loads((folder / "result.json").read_text())
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert result["metrics"]["last"]["val/top1_error"] == rows[-1]["val/top1_error"]
    assert result["metrics"]["best"]["val/top1_error"] == min(row["val/top1_error"] for row in rows)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] < 2.6
    assert rows[-1]["val/images"] == 5 * 64
    assert rows[-1]["train/images"] == 20 * 64
    # The rate that an epoch's last step was made with: step 59 of 60 is in epoch 2.95 of 3.
    assert rows[-1]["lr"] == pytest.approx(0.0125 * (1 + math.cos(math.pi * (59 / 20 - 0.5) / 2.5)))
    assert result["epochs"] == 3
    assert result["seconds"] > 0
    assert result["peak_memory_bytes"]["resident"] > 1e8
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["config"]["ge"]["variant"] == "theta_plus"
    assert result["command"] == f"python -m geexp.train ge=theta_plus {' '.join(SHORT)}"
    assert result["complexity"]["params"] == sum(
        value.numel() for name, value in weights(folder).items() if "running" not in name and "num_batches" not in name
    )
    assert (folder / ".hydra/config.yaml").is_file()
    assert (folder / "config.yaml").is_file()

    # The run was validated with five batches, and so is the evaluation, by the checkpoint's configuration.
    again = run("evaluate", f"run={folder}", "which=last", "format=json")
    assert again.returncode == 0, again.stderr
    measured = json.loads(again.stdout)
    assert measured["measured"] == measured["recorded"]
    assert measured["identical"] is True
    # From the checkpoint alone, moved elsewhere, after the run is gone.
    lonely = tmp_path / "elsewhere.ckpt"
    (folder / "checkpoints/best.ckpt").rename(lonely)
    text = run("evaluate", f"checkpoint={lonely}").stdout
    assert "identical to the record" in text
    assert "of 320 images" in text

    second = run("train", "ge=theta_plus", *SHORT)
    assert second.returncode == 0
    assert "finished earlier" in second.stderr
    assert second.stdout == done.stdout
    assert history(folder) == rows


@pytest.mark.slow
def test_force_and_resume_false_start_over(run, tmp_path):
    one_batch = ["debug=one_batch", "logger=none", "ge=none"]
    assert run("train", *one_batch).returncode == 0
    folder = only_run(tmp_path)
    for again in ("force=true", "resume=false"):
        before = (folder / "result.json").read_text()
        done = run("train", *one_batch, again)
        assert done.returncode == 0
        assert "training into" in done.stderr
        assert (folder / "result.json").read_text() != before
        assert len(history(folder)) == 1


@pytest.mark.parametrize(("precision", "variant"), [("64-true", "theta_plus"), ("bf16-true", "se")])
def test_a_run_in_another_precision_comes_to_its_end(tmp_path, precision, variant):
    """Its excite convolutions have biases, which must be counted in that precision."""
    result = train(job(tmp_path, "debug=one_batch", "logger=none", f"ge={variant}", f"trainer.precision={precision}"))
    network = network_of(train_config(f"ge={variant}"))
    assert result.complexity["params"] == sum(parameter.numel() for parameter in network.parameters())
    checkpoint = load_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert evaluate(Classification(), checkpoint, EvaluateConfig(accelerator="cpu")).identical is True


@pytest.mark.slow  # compiles for two minutes
def test_a_compiled_run_is_evaluated_as_it_was_validated(tmp_path):
    def run(entry: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return python("-m", f"geexp.{entry}", *arguments, cwd=tmp_path)

    compiled = ["trainer=cpu", "trainer.compile=true", "trainer.precision=bf16-mixed", "trainer.limit_train_batches=8"]
    assert run("train", "ge=theta", "trainer.max_epochs=1", "logger=none", *compiled).returncode == 0
    found = json.loads(run("evaluate", f"run={only_run(tmp_path)}", "which=last", "format=json").stdout)
    assert found["measured"] == found["recorded"]  # the loss, too, which the network itself rounds differently


@pytest.mark.slow
def test_a_folder_of_another_configuration_is_refused(run, tmp_path):
    one_batch = ["debug=one_batch", "logger=none", "hydra.run.dir=mine"]
    assert run("train", *one_batch, "ge=none").returncode == 0
    other = run("train", *one_batch, "ge=se")
    assert other.returncode == 2
    assert "ge.variant=se (in the folder: none)" in other.stderr
    (tmp_path / "mine/result.json").unlink()
    other = run("train", *one_batch, "ge=none", "optim.lr=0.5")
    assert other.returncode == 2
    assert "optim.lr=0.5 (in the folder: 0.025)" in other.stderr
    assert run("train", *one_batch, "ge=se", "force=true").returncode == 0
    spoilt = run("train", *one_batch, "ge=se", "force=true", "optim.batch_size=20000")
    assert spoilt.returncode == 2
    assert (tmp_path / "mine/result.json").is_file()  # a start that fails takes nothing with it


@pytest.mark.slow
def test_a_checkpoint_from_before_the_first_validation(run, tmp_path):
    done = run("train", *SHORT, "optim.lr=1e9")
    assert done.returncode == 1
    again = run("evaluate", f"checkpoint={only_run(tmp_path) / 'checkpoints/last.ckpt'}")
    assert again.returncode == 0
    assert "(after epoch 0)" in again.stdout
    assert "nothing recorded" in again.stdout


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(run, tmp_path):
    one_batch = ["debug=one_batch", "logger=none", "ge=none"]
    run("train", *one_batch)
    folder = only_run(tmp_path)
    rows, trained = history(folder), weights(folder)
    (folder / "result.json").unlink()
    last = folder / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:2000])
    done = run("train", *one_batch)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {last}" in done.stderr
    assert "Resuming from the one before it" in done.stderr
    assert last.with_name("damaged.ckpt").stat().st_size == 2000
    assert history(folder) == rows
    assert all(torch.equal(weights(folder)[name], value) for name, value in trained.items())


def test_the_users_command_with_one_batch(run, tmp_path):
    done = run("train", "model=resnet50", "ge=theta", "ge.extent=8", "debug=one_batch", "logger=none")
    assert done.returncode == 0, done.stderr
    assert only_run(tmp_path).parts[-4:-1] == ("resnet50", "theta-e8", "demo")


@pytest.mark.slow
def test_a_sweep_ends_with_a_table_and_a_picture(run, tmp_path):
    done = run("train", "-m", "launcher=inline", "ge=none,theta", "debug=one_batch", "logger=csv", "seed=0,1")
    assert done.returncode == 0, done.stderr
    results = list(tmp_path.glob("outputs/**/result.json"))
    assert len(results) == 4
    assert {json.loads(path.read_text())["identity"]["seed"] for path in results} == {0, 1}
    for label in ("baseline seed 0", "GE-θ seed 1"):
        assert label in done.stdout
    (picture,) = tmp_path.glob("outputs/**/curves.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| GE-θ seed 0 |" in picture.with_name("table.md").read_text()
    assert len(list(tmp_path.glob("outputs/**/metrics.csv"))) == 4

    report = run("report.__main__", "format=json", "tables=none", "figures=none")
    assert report.returncode == 0
    assert {row["label"] for row in json.loads(report.stdout)["rows"]} == {
        f"{label} seed {seed}" for label in ("baseline", "GE-θ") for seed in (0, 1)
    }


@pytest.mark.slow
def test_profiler_leaves_its_report(run, tmp_path):
    done = run("train", "debug=profiler", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "logger=none")
    assert done.returncode == 0, done.stderr
    assert "run_training_batch" in (only_run(tmp_path) / "fit-profile.txt").read_text()


@pytest.mark.slow
def test_overfit_learns_its_batches_by_heart(run, tmp_path):
    done = run("train", "debug=overfit", "logger=none")
    assert done.returncode == 0, done.stderr
    assert history(only_run(tmp_path))[-1]["train/top1_error"] < 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(run):
    done = run("train", "trainer=gpu", "logger=none")
    assert done.returncode == 2
    assert "Lightning rejects" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("feed", ["reference", "folder feed.engine=workers feed.workers=2", "folder"])
def test_a_truncated_image_ends_in_one_line(run, tmp_path, feed):
    for split in ("train", "val"):
        write_classes(tmp_path / split, ("cat", "dog"), 4)
    bad = tmp_path / "train/dog/dog_2.JPEG"
    bad.write_bytes(bad.read_bytes()[:400])
    done = run(
        "train", "data=imagenet", "data.root=.", "data.num_classes=2", "data.image_size=32", "optim.batch_size=4",
        "logger=none", *f"feed={feed}".split(),
    )  # fmt: skip
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("geexp.train: cannot read")
    assert "dog_2.JPEG" in message
    assert "Traceback" not in done.stderr
