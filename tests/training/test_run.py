"""Whole runs as a user starts them: what they leave, how they go on, how they are measured again."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import environment

# Three short epochs that learn something.
SHORT = ["trainer.limit_train_batches=20", "trainer.limit_val_batches=5", "schedule.epochs=3", "logger=none"]


def only_run(folder: Path) -> Path:
    (run,) = (path.parent for path in folder.glob("outputs/**/config_tree.txt"))
    return run


def history(run: Path) -> list[dict]:
    """The rows without what differs from start to start."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "time")} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


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

    for arguments in ([f"run={folder}"], [f"run={folder}", "which=last"]):
        again = run("evaluate", *arguments, "format=json")
        assert again.returncode == 0, again.stderr
        measured = json.loads(again.stdout)
        # The run saw five batches of the evaluation split, evaluation sees what the checkpoint's configuration says.
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


def interrupted(tmp_path: Path, *arguments: str, when: str) -> subprocess.CompletedProcess[str]:
    """Start a run and press Ctrl-C some moments after ``when`` has appeared on standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "geexp.train", *arguments],
        cwd=tmp_path,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    seen = ""
    for line in process.stderr:
        seen += line
        if when in line:
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, seen + rest)


def test_interrupted_and_resumed_equals_uninterrupted(run, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    arguments = [*SHORT[1:], "trainer.limit_train_batches=60", "ge=theta", "feed=reference"]  # long enough to be hit
    assert run("train", *arguments, f"outputs={straight}").returncode == 0
    stopped = interrupted(tmp_path, *arguments, f"outputs={broken}", when="epoch 1/3")
    assert stopped.returncode == 130, stopped.stderr
    assert "Interrupted in epoch 2" in stopped.stderr
    assert "resume=true" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    (folder,) = (path.parent for path in broken.glob("**/config_tree.txt"))
    assert not (folder / "result.json").exists()
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["geexp"]["epoch"] == 1

    resumed = run("train", *arguments, f"outputs={broken}", "resume=true", "feed.workers=2")
    assert resumed.returncode == 0, resumed.stderr
    (reference,) = (path.parent for path in straight.glob("**/config_tree.txt"))
    assert history(folder) == history(reference)
    for name, value in weights(reference).items():
        assert torch.equal(weights(folder)[name], value), name


def test_killed_within_an_epoch_and_resumed_equals_uninterrupted(run, tmp_path):
    """Killed with no chance to clean up; all of the epoch's figures are those of the whole epoch."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    arguments = ["ge=theta", "logger=none", "trainer.max_epochs=2", "trainer.limit_val_batches=4"]
    arguments += ["trainer.limit_train_batches=50"]
    assert run("train", *arguments, f"outputs={straight}").returncode == 0
    often = [*arguments, f"outputs={broken}", "trainer.checkpoint_every_n_steps=7"]
    process = subprocess.Popen(
        [sys.executable, "-m", "geexp.train", *often],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (steps := [step for step in map(step_of, broken.glob("**/last.ckpt")) if step % 50]):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert steps[0] % 7 == 0
    resumed = run("train", *often, "resume=true")
    assert resumed.returncode == 0, resumed.stderr
    (reference,), (folder,) = ([p.parent for p in place.glob("**/config_tree.txt")] for place in (straight, broken))
    assert history(folder) == history(reference)
    for name, value in weights(reference).items():
        assert torch.equal(weights(folder)[name], value), name


def step_of(checkpoint) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def test_killed_in_the_first_epoch(run, tmp_path):
    """Or before it: in either case the end is clean, and the run starts again."""
    stopped = interrupted(tmp_path, "trainer.limit_val_batches=2", "logger=none", when="training into")
    assert stopped.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in stopped.stderr


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


def test_evaluation_in_double_precision_is_exact(run, tmp_path):
    assert run("train", "debug=one_batch", "logger=none", "trainer.precision=64-true").returncode == 0
    measured = json.loads(run("evaluate", f"run={only_run(tmp_path)}", "format=json").stdout)
    assert measured["measured"] == measured["recorded"]


def test_a_folder_of_another_configuration_is_refused(run, tmp_path):
    one_batch = ["debug=one_batch", "logger=none", "hydra.run.dir=mine"]
    assert run("train", *one_batch, "ge=none").returncode == 0
    other = run("train", *one_batch, "ge=se")
    assert other.returncode == 2
    assert "ge.variant=se (there: none)" in other.stderr
    (tmp_path / "mine/result.json").unlink()
    other = run("train", *one_batch, "ge=none", "optim.lr=0.5")
    assert other.returncode == 2
    assert "optim.lr=0.5 (there: 0.025)" in other.stderr
    assert run("train", *one_batch, "ge=se", "force=true").returncode == 0
    spoilt = run("train", *one_batch, "ge=se", "force=true", "optim.batch_size=20000")
    assert spoilt.returncode == 2
    assert (tmp_path / "mine/result.json").is_file()  # a start that fails takes nothing with it


def test_a_diverged_run_stops_and_keeps_the_epoch_before(run, tmp_path):
    done = run("train", *SHORT, "optim.lr=1e9")
    assert done.returncode == 1
    assert "the run has diverged" in done.stderr
    assert "optim.lr" in done.stderr
    assert "Traceback" not in done.stderr
    folder = only_run(tmp_path)
    assert not (folder / "result.json").exists()
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    again = run("evaluate", f"checkpoint={folder / 'checkpoints/last.ckpt'}")
    assert again.returncode == 0
    assert "(after epoch 0)" in again.stdout
    assert "nothing recorded" in again.stdout


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    one_batch = ["debug=one_batch", "logger=none", "ge=none"]
    run("train", *one_batch)
    folder = only_run(tmp_path)
    (folder / "result.json").unlink()
    path = folder / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:2000])
    done = run("train", *one_batch)
    assert done.returncode == 1
    assert f"checkpoint {path}" in done.stderr
    assert "resume=false" in done.stderr
    assert "Traceback" not in done.stderr
    missing = run("evaluate", f"run={folder}", "which=last")
    assert missing.returncode == 1
    assert "damaged" in missing.stderr


def test_the_users_command_with_one_batch(run, tmp_path):
    done = run("train", "model=resnet50", "ge=theta", "ge.extent=8", "debug=one_batch", "logger=none")
    assert done.returncode == 0, done.stderr
    assert only_run(tmp_path).parts[-4:-1] == ("resnet50", "theta-e8", "demo")


def test_a_failing_job_of_a_sweep_does_not_stop_the_others(run, tmp_path):
    done = run("train", "-m", "ge=none,theta", "debug=one_batch", "logger=none", "optim.batch_size=20000,64")
    assert done.returncode == 2
    assert "optim.batch_size=20000" in done.stderr
    assert len(list(tmp_path.glob("outputs/**/result.json"))) == 2
    assert "baseline" in done.stdout  # the table of what was finished is printed all the same
    assert done.stdout.count("not finished") == 2
    assert done.stderr.count("job failed: ") == 2
    assert "Traceback" not in done.stderr


def test_a_sweep_ends_with_a_table_and_a_picture(run, tmp_path):
    done = run("train", "-m", "ge=none,theta", "debug=one_batch", "logger=csv", "seed=0,1")
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

    report = run("report", "format=json")
    assert report.returncode == 0
    assert {row["label"] for row in json.loads(report.stdout)["rows"]} == {
        f"{label} seed {seed}" for label in ("baseline", "GE-θ") for seed in (0, 1)
    }


def test_wandb_without_a_login_is_offline_and_never_asks(run, tmp_path):
    done = run("train", "-m", "ge=none,se", "debug=one_batch", "logger=wandb", NETRC=str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    assert "W&B offline" in done.stderr
    runs = sorted(tmp_path.glob("outputs/**/run-*.wandb"))
    assert len(runs) == 2  # one run per job, each in its job's folder
    assert len({path.parent.name.split("-", 3)[-1] for path in runs}) == 2


@pytest.mark.slow
def test_wandb_online_without_a_network_goes_on_offline(run, tmp_path):
    done = run(
        "train", "debug=one_batch", "logger=wandb", "logger.mode=online",
        WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "logging offline" in done.stderr


def test_profiler_leaves_its_report(run, tmp_path):
    done = run("train", "debug=profiler", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "logger=none")
    assert done.returncode == 0, done.stderr
    assert "run_training_batch" in (only_run(tmp_path) / "fit-profile.txt").read_text()


def test_overfit_learns_its_batches_by_heart(run, tmp_path):
    done = run("train", "debug=overfit", "logger=none")
    assert done.returncode == 0, done.stderr
    assert history(only_run(tmp_path))[-1]["train/top1_error"] < 5


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "outputs").write_text("a file where the folder should be")
    done = run("train", "debug=one_batch")
    assert done.returncode == 1
    assert "outputs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(run):
    done = run("train", "trainer=gpu", "logger=none")
    assert done.returncode == 2
    assert "Lightning refuses" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("feed", ["reference", "folder feed.engine=workers feed.workers=2", "folder"])
def test_a_truncated_image_ends_in_one_line(run, tmp_path, feed):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (64, 64), (40 * i, 90, 20)).save(tmp_path / split / name / f"{i}.JPEG")
    bad = tmp_path / "train/dog/2.JPEG"
    bad.write_bytes(bad.read_bytes()[:400])
    done = run(
        "train", "data=imagenet", "data.root=.", "data.num_classes=2", "data.image_size=32", "optim.batch_size=4",
        "logger=none", *f"feed={feed}".split(),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("geexp.train: cannot read")
    assert "2.JPEG" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
