"""Faults during training: each ends in one clear message, and no finished work is lost."""

import errno
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from geexp.config.errors import DataError, DivergedError
from geexp.runs.lock import run_lock
from geexp.runs.run import Run
from geexp.training import loggers
from geexp.training.run import train
from tests.conftest import environment
from tests.support.configuration import job
from tests.support.forked import Ended
from tests.support.processes import until
from tests.support.runs import SETTINGS, checkpoint, history, same_end, same_weights, trouble

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    assert train(job(run, *SETTINGS)) is not None
    return run


def ends_as(uninterrupted: Path, run: Path) -> None:
    """The same command, given again, comes to the same end."""
    assert train(job(run, *SETTINGS)) is not None
    same_end(run, uninterrupted)


def one_message(ended: Ended | subprocess.CompletedProcess[str]) -> str:
    """The only error that a process prints that failed, after its progress."""
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("geexp.train: ") == 1
    return ended.stderr.splitlines()[-1].removeprefix("geexp.train: ")


def step_saved(run: Path) -> int | None:
    """None at the moment when last.ckpt has become previous.ckpt and its successor is not yet in place."""
    try:
        return checkpoint(run)["global_step"]
    except FileNotFoundError:
        return None


def assert_silent(rank: Ended) -> None:
    """It had left the message to the first rank, and ended at once on torchrun's SIGTERM."""
    assert (rank.returncode, rank.stdout, rank.stderr) == (-signal.SIGTERM, "", "")


# NaN and infinity


@pytest.mark.parametrize(
    ("overrides", "what", "good"),
    [
        ([trouble("Poison", step=8)], "the training loss is not finite at step 8, in epoch 2 (learning rate 0.0", 6),
        # All pixels are infinite.
        (["data.std=[1e-44]"], "the training loss is not finite at step 1, in epoch 1 (learning rate 0)", 0),
        # A step whose loss is a number still, but not the weights that it leaves; a checkpoint is due after each.
        (["optim.lr=1e9", "trainer.checkpoint_every_n_steps=1"], "the weights are not finite after step ", None),
    ],
)
def test_a_diverged_run_stops_at_once_and_its_last_checkpoint_is_sound(tmp_path, overrides, what, good):
    with pytest.raises(DivergedError) as diverged:
        train(job(tmp_path, *SETTINGS, *overrides))
    message = str(diverged.value)
    assert message.startswith(what)
    assert diverged.value.exit_code == 1
    assert "Try a lower optim.lr" in message
    last = checkpoint(tmp_path)
    assert f"The last good checkpoint is {tmp_path}/checkpoints/last.ckpt, of step {last['global_step']}." in message
    assert good in (None, last["global_step"])
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    status = Run(tmp_path).status
    assert (status.state, status.reason) == ("diverged", message)
    assert Run(tmp_path).result is None


def test_a_run_that_diverged_by_accident_can_be_resumed(uninterrupted, tmp_path):
    with pytest.raises(DivergedError):
        train(job(tmp_path, *SETTINGS, trouble("Poison", step=11)))
    assert checkpoint(tmp_path)["global_step"] == 8
    ends_as(uninterrupted, tmp_path)


def test_a_validation_loss_that_is_no_number_costs_no_result(tmp_path):
    """The network is sound, as in half precision, where other values are too large."""
    result = train(job(tmp_path, *SETTINGS, "schedule.epochs=1", trouble("PoisonValidation")))
    assert result is not None
    assert Run(tmp_path).result.metrics == result.metrics
    json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    for which in ("last", "best"):
        assert result.metrics[which]["val/loss"] is None
        assert result.metrics[which]["val/images"] == 64


@pytest.mark.parametrize(
    ("fault", "message", "state"),
    [
        (trouble("Poison", step=8, rank=1), "the training loss is not finite at step 8, in epoch 2", "diverged"),
        (trouble("Full", name="checkpoints/last.ckpt", epoch=1), os.strerror(errno.ENOSPC), "failed"),
    ],
)
def test_a_fault_of_one_of_two_ranks_stops_both_with_one_message(forked, tmp_path, fault, message, state):
    run = tmp_path / "run"
    arguments = [*SETTINGS, "trainer.devices=2", f"hydra.run.dir={run}", fault]
    first, second = forked.run(tmp_path, "train", *arguments, ranks=2, grace=2)
    assert message in one_message(first)
    assert_silent(second)
    assert Run(run).status.state == state
    assert checkpoint(run)["global_step"] == 6


# disks


@pytest.mark.parametrize(
    ("name", "epoch", "step"),
    [("history.jsonl", 1, 8), ("checkpoints/last.ckpt", 1, 6), ("checkpoints/best.ckpt", 0, 4), ("result.json", 1, 12)],
)
def test_no_room_for_a_file(uninterrupted, tmp_path, name, epoch, step):
    """For each file, in an epoch counted from 0; then the run resumes from a step."""
    with pytest.raises(DataError) as full:
        train(job(tmp_path, *SETTINGS, trouble("Full", name=name, epoch=epoch)))
    message = str(full.value)
    assert str(tmp_path) in message
    assert os.strerror(errno.ENOSPC) in message
    assert "the same command" in message
    assert "\n" not in message
    status = Run(tmp_path).status
    assert (status.state, status.reason) == ("failed", message)
    assert Run(tmp_path).result is None
    assert checkpoint(tmp_path)["global_step"] == step
    if name == "history.jsonl":  # what was written before is there still
        (tmp_path / name).unlink()
        (tmp_path / f"{name}.real").rename(tmp_path / name)
    ends_as(uninterrupted, tmp_path)


def test_a_read_only_folder(uninterrupted, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(uninterrupted, outputs / "run")
    (outputs / "run/result.json").unlink()
    before = contents(outputs)
    read_only = f"mount --bind {outputs} {outputs} && mount -o remount,bind,ro {outputs}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", read_only], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    command = shlex.join([sys.executable, "-m", "geexp.train", *SETTINGS, f"hydra.run.dir={outputs}/run"])
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{read_only} && {command}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    message = one_message(done)
    assert done.stderr.count("\n") == 1
    assert message.startswith(f"{outputs}/run")
    assert os.strerror(errno.EROFS) in message
    assert "choose another folder" in message
    assert contents(outputs) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# two processes, one run


def test_a_second_process_on_a_run_is_refused(forked, uninterrupted, tmp_path):
    run = tmp_path / "run"
    arguments = [*SETTINGS, f"hydra.run.dir={run}", "feed=reference", "feed.workers=1"]
    first = forked.start(tmp_path, "train", *arguments, trouble("Stuck", step=6))
    until(lambda: (run / "history.jsonl").exists())
    (second,) = forked.run(tmp_path, "train", *arguments)
    expected = f"{run}: process {first.pids[0]} on {socket.gethostname()} is training this run."
    assert one_message(second).startswith(expected)
    assert second.stderr.count("\n") == 1
    status = Run(run).status
    assert (status.state, status.pid) == ("running", first.pids[0])
    # Killed while its workers live on, it makes room at once for another, which ends as if nothing had been.
    workers = psutil.Process(first.pids[0]).children()
    assert workers
    for worker in workers:
        worker.suspend()
    os.kill(first.pids[0], signal.SIGKILL)
    assert first.end()[0].returncode == -signal.SIGKILL
    assert Run(run).status.state == "lost"
    (third,) = forked.run(tmp_path, "train", *arguments)
    for worker in workers:
        assert worker.status() == psutil.STATUS_STOPPED
        worker.kill()
    assert third.returncode == 0, third.stderr
    assert "resuming: " in third.stderr


def test_under_torchrun_the_second_is_refused_once(forked, tmp_path):
    run = tmp_path / "run"
    with run_lock(run):
        arguments = [*SETTINGS, "trainer.devices=2", f"hydra.run.dir={run}"]
        first, second = forked.run(tmp_path, "train", *arguments, ranks=2, grace=1)
    assert f"process {os.getpid()} on" in one_message(first)
    assert_silent(second)


# clocks


def test_clocks_that_jump_change_nothing(uninterrupted, tmp_path):
    assert train(job(tmp_path, *SETTINGS, trouble("ClockJumps"))) is not None
    assert history(tmp_path) == history(uninterrupted)
    same_weights(tmp_path, uninterrupted)
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert all(0 < row["seconds"] < 60 for row in rows)
    assert 0 < Run(tmp_path).result.seconds < 120
    assert Run(tmp_path).status.state == "complete"


# Weights & Biases


class Unwell:
    """A run at W&B whose process has been killed."""

    def log(self, *_: object, **__: object) -> None:
        raise ConnectionResetError("Connection lost")


def test_a_failure_of_wandb_is_logged_once(caplog):
    logger = loggers.TolerantWandb(experiment=Unwell())
    for step in (1, 2, 3):
        logger.log_metrics({"loss": 1.0}, step)
    (message,) = caplog.messages
    assert "Connection lost" in message


@pytest.mark.parametrize("wandbs_end", ["never", "with an error"])
def test_the_end_waits_for_wandb_no_longer_than_it_says(monkeypatch, caplog, wandbs_end):
    wandb = pytest.importorskip("wandb")
    released, torn_down = threading.Event(), []

    def finish() -> None:
        released.wait(60)
        raise ConnectionResetError

    monkeypatch.setattr(wandb, "finish", finish)
    monkeypatch.setattr(wandb, "teardown", lambda: torn_down.append(True))
    monkeypatch.setattr(loggers, "PATIENCE", 0.1 if wandbs_end == "never" else 10)
    if wandbs_end == "with an error":
        released.set()
    begin = time.monotonic()
    loggers.finish_wandb()
    assert time.monotonic() - begin < 5
    assert ("W&B does not respond" in caplog.text) == (wandbs_end == "never")
    assert bool(torn_down) == (wandbs_end == "with an error")
    released.set()


ONLINE = [*SETTINGS, "logger=wandb", "logger.mode=online"]


@pytest.mark.slow
def test_a_wandb_server_that_does_not_answer(forked, uninterrupted, tmp_path):
    """It takes connections, and that is all."""
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as hole:
        address = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{hole.getsockname()[1]}"}
        begin = time.monotonic()
        (ended,) = forked.run(tmp_path, "train", *ONLINE, f"hydra.run.dir={run}", **address)
        assert time.monotonic() - begin < 60
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("W&B cannot be reached") == 1
    assert "logging offline" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert history(run) == history(uninterrupted)
    same_weights(run, uninterrupted)


@pytest.mark.slow
def test_wandbs_process_is_killed(forked, uninterrupted, tmp_path):
    run = tmp_path / "run"
    offline = [*SETTINGS, "logger=wandb", "logger.mode=offline", trouble("KillHelper", name="wandb-core")]
    (ended,) = forked.run(tmp_path, "train", *offline, f"hydra.run.dir={run}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("W&B logging failed") == 1
    assert "Traceback" not in ended.stderr
    assert history(run) == history(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_ranks_is_killed(forked, tmp_path, victim):
    run = tmp_path / "run"
    arguments = [*SETTINGS, "trainer.devices=2", f"hydra.run.dir={run}"]
    started = forked.start(tmp_path, "train", *arguments, trouble("Stuck", step=8, rank=victim), ranks=2)
    until(lambda: (run / "history.jsonl").exists() and step_saved(run) == 8)
    os.kill(started.pids[victim], signal.SIGKILL)
    ended = started.end(grace=90)
    other = ended[1 - victim]
    assert ended[victim].returncode == -signal.SIGKILL
    assert other.returncode == 1
    assert "another rank of this run" in other.stderr.splitlines()[-1]
    assert "Traceback" not in other.stderr
    assert Run(run).status.state == ("lost" if victim == 0 else "failed")
    done = forked.run(tmp_path, "train", *arguments, ranks=2)
    assert [rank.returncode for rank in done] == [0, 0]
    straight = tmp_path / "straight"
    forked.run(tmp_path, "train", *arguments[:-1], f"hydra.run.dir={straight}", ranks=2)
    assert history(run) == history(straight)
    same_weights(run, straight)
