"""Signals: a training that is asked to stop does so where nothing is lost, says so, and goes on to the same end.

A training sends the signals to itself, at a known point. Most run in the tests' own process.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR1
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from geexp.runs.run_files import read_result
from geexp.training.run import train
from geexp.training.stopping import Stopped, StopSignals
from tests.conftest import environment
from tests.support.configuration import train_config
from tests.training.test_run import history, same_weights

# Three epochs of four steps, of two batches each. Within an epoch there is no checkpoint but what a signal asks for.
SETTINGS = ["trainer=cpu", "trainer.accumulate=2", "trainer.limit_train_batches=8", "trainer.limit_val_batches=2"]
SETTINGS += ["optim.batch_size=32", "schedule.epochs=3", "callbacks=ema", "logger=none"]


class Sender(pl.Callback):
    """Sends the ``signals`` to its own process, before the set-up or before a batch of training or of validation.

    Of several ranks the last one does.
    """

    def __init__(self, signals: list[int], before: str, epoch: int = 0, batch: int = 0) -> None:
        self.signals, self.point = signals, (before, epoch, batch)

    def reached(self, trainer: pl.Trainer, *point: object) -> None:
        if point == self.point and trainer.global_rank == trainer.world_size - 1:
            for signum in self.signals:
                os.kill(os.getpid(), signum)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.reached(trainer, "setup", 0, 0)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        self.reached(trainer, "training", trainer.current_epoch, batch_idx)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.reached(trainer, "validation", trainer.current_epoch, batch_idx)


def settings(*signals: int, before: str = "training", epoch: int = 0, batch: int = 0) -> list[str]:
    """With the sender, under a name that is no part of a run's identity."""
    sender = {"_target_": f"{__name__}.Sender", "signals": [*map(int, signals)], "before": before}
    sender |= {"epoch": epoch, "batch": batch}
    return [*SETTINGS, *(f"+callbacks.device_stats.{key}={value}" for key, value in sender.items())]


def status(run: Path) -> tuple[str, str | None]:
    written = json.loads((run / "status.json").read_text())
    return written["state"], written["reason"]


def last_checkpoint(run: Path) -> tuple[int, int]:
    """How many steps and how many validated epochs there are in it."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint["global_step"], checkpoint["geexp"]["epoch"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in the processes that go on with what was begun here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    assert train(train_config(*SETTINGS), run) is not None
    assert status(run) == ("complete", None)
    return run


@pytest.fixture(autouse=True)
def handlers():
    """Afterwards all signals do what they did before."""
    assert threading.current_thread() is threading.main_thread()  # or these signals would end the tests
    usual = signal.signal(SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    before = {signum: signal.getsignal(signum) for signum in (SIGINT, SIGTERM, SIGUSR1)}
    yield
    after = {signum: signal.getsignal(signum) for signum in before}
    signal.signal(SIGINT, usual)
    assert after == before


def ends_as(uninterrupted: Path, run: Path) -> None:
    """The same command, given again, comes to the same end."""
    assert train(train_config(*SETTINGS), run) is not None
    assert status(run) == ("complete", None)
    assert history(run) == history(uninterrupted)
    same_weights(run, uninterrupted)


# the signals, exit code, how the run ended, by its own account
ONE_SIGNAL = [
    ([SIGTERM], 75, ("preempted", "SIGTERM")),
    ([SIGUSR1, SIGTERM], 75, ("preempted", "SIGUSR1")),  # a cluster's warning, and its end
    ([SIGINT], 130, ("interrupted", "Ctrl-C")),
]


@pytest.mark.parametrize(("signals", "code", "end"), ONE_SIGNAL, ids=["SIGTERM", "SIGUSR1, SIGTERM", "SIGINT"])
def test_in_training_it_stops_after_the_step(uninterrupted, tmp_path, capsys, signals, code, end):
    with pytest.raises(Stopped) as stopped:
        train(train_config(*settings(*signals, epoch=1, batch=2)), tmp_path)
    assert stopped.value.code == code
    assert status(tmp_path) == end
    assert last_checkpoint(tmp_path) == (6, 1)  # the second step of the second epoch, of which that batch was the first
    assert read_result(tmp_path) is None
    said = capsys.readouterr().err
    assert f"{end[1]}: stopped in epoch 2 after step 6" in said
    assert str(tmp_path / "checkpoints/last.ckpt") in said
    ends_as(uninterrupted, tmp_path)


@pytest.mark.parametrize(("before", "batch"), [("training", 7), ("validation", 0), ("validation", 1)])
def test_at_the_end_of_an_epoch_it_stops_after_the_validation(uninterrupted, tmp_path, before, batch):
    with pytest.raises(Stopped):
        train(train_config(*settings(SIGTERM, before=before, epoch=1, batch=batch)), tmp_path)
    assert last_checkpoint(tmp_path) == (8, 2)
    assert history(tmp_path) == history(uninterrupted)[:2]
    ends_as(uninterrupted, tmp_path)


def test_in_the_last_validation_there_is_nothing_left_to_stop(uninterrupted, tmp_path):
    assert train(train_config(*settings(SIGTERM, before="validation", epoch=2)), tmp_path) is not None
    assert status(tmp_path) == ("complete", None)
    assert history(tmp_path) == history(uninterrupted)


def test_ctrl_c_once_more_stops_at_once(uninterrupted, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        train(train_config(*settings(SIGINT, SIGINT, epoch=1, batch=6)), tmp_path)
    assert status(tmp_path)[0] == "interrupted"
    assert last_checkpoint(tmp_path) == (4, 1)  # from before
    said = capsys.readouterr().err
    assert "Ctrl-C once more stops at once" in said
    assert f"Interrupted at once; the last checkpoint is {tmp_path / 'checkpoints/last.ckpt'}" in said
    ends_as(uninterrupted, tmp_path)


@pytest.mark.parametrize(
    ("signum", "kind", "state"), [(SIGTERM, Stopped, "preempted"), (SIGINT, KeyboardInterrupt, "interrupted")]
)
def test_before_training_begins_it_stops_at_once(tmp_path, signum, kind, state):
    with pytest.raises(kind):
        train(train_config(*settings(signum, before="setup")), tmp_path)
    assert status(tmp_path)[0] == state
    assert not (tmp_path / "checkpoints").exists()


# what comes one after the other while it trains, how that ends, which signal is told
@pytest.mark.parametrize(
    ("signals", "end", "received"),
    [
        ([SIGUSR1], None, SIGUSR1),
        ([SIGTERM, SIGTERM, SIGUSR1], None, SIGTERM),
        ([SIGINT, SIGTERM], None, SIGINT),
        ([SIGINT, SIGINT], KeyboardInterrupt, SIGINT),
        ([SIGTERM, SIGINT], KeyboardInterrupt, SIGINT),
    ],
    ids=lambda case: " ".join(s.name for s in case) if isinstance(case, list) else "",
)
def test_several_signals(signals, end, received):
    with StopSignals() as stop:
        stop.training = True
        for number, signum in enumerate(signals, 1):
            if end is not None and number == len(signals):
                with pytest.raises(end):
                    os.kill(os.getpid(), signum)
            else:
                os.kill(os.getpid(), signum)
        assert stop.received == received


def test_what_the_shell_lets_pass_passes():
    """Under nohup, and in the background of a script, Ctrl-C is for others."""
    signal.signal(SIGINT, signal.SIG_IGN)
    with StopSignals() as stop:
        stop.training = True
        os.kill(os.getpid(), SIGINT)
        assert not stop.received
    assert signal.signal(SIGINT, signal.default_int_handler) == signal.SIG_IGN


def process(run: Path, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, "-m", *launcher, "geexp.train", *arguments, f"hydra.run.dir={run}"],
        env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=200,
    )


@pytest.mark.slow
def test_exit_codes(uninterrupted, tmp_path):
    """Of real processes, one after the other on the same run, which then comes to the same end."""
    for epoch, signals, code, step in ((0, [SIGINT], 130, 2), (1, [SIGTERM], 75, 6), (2, [SIGINT, SIGINT], 130, 8)):
        done = process(tmp_path, *settings(*signals, epoch=epoch, batch=3))
        assert done.returncode == code, done.stderr
        assert not done.stdout
        assert "resume=true" in done.stderr
        assert "Traceback" not in done.stderr
        assert last_checkpoint(tmp_path)[0] == step
    ends_as(uninterrupted, tmp_path)


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert process(whole, *SETTINGS, "trainer.devices=2", ranks=2).returncode == 0
    done = process(stopped, *settings(SIGUSR1, epoch=1, batch=2), "trainer.devices=2", ranks=2)
    assert done.returncode == 1  # torchrun knows no other
    assert done.stderr.count("exitcode  : 75") == 2
    assert status(stopped) == ("preempted", "SIGUSR1")
    assert last_checkpoint(stopped) == (6, 1)
    assert process(stopped, *SETTINGS, "trainer.devices=2", ranks=2).returncode == 0
    assert history(stopped) == history(whole)
    same_weights(stopped, whole)
