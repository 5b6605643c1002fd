"""Signals: training stops with a checkpoint and a message, and resumes to the same end.

A training sends the signals to itself, at a known point. Most run in the tests' own process.
"""

import os
import signal
import threading
from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR1

import pytest

from geexp.runs.run import Run
from geexp.training.run import train
from geexp.training.stopping import Stopped, StopSignals
from tests.support.configuration import job
from tests.support.runs import checkpoint, history, same_end, trouble

pytestmark = pytest.mark.usefixtures("one_thread")

# Three epochs of four steps, of two batches each. Within an epoch there is no checkpoint but what a signal asks for.
SETTINGS = ["trainer=cpu", "trainer.accumulate=2", "trainer.limit_train_batches=8", "trainer.limit_val_batches=2"]
SETTINGS += ["optim.batch_size=32", "schedule.epochs=3", "callbacks=ema", "logger=none"]


def settings(*signals: int, before: str = "training", epoch: int = 0, batch: int = 0) -> list[str]:
    return [*SETTINGS, trouble("Sender", signals=[*map(int, signals)], before=before, epoch=epoch, batch=batch)]


def ended(run: Path) -> tuple[str, str | None]:
    status = Run(run).status
    return status.state, status.reason


def last_checkpoint(run: Path) -> tuple[int, int]:
    """Its number of steps and of validated epochs."""
    content = checkpoint(run)
    return content["global_step"], content["geexp"]["epoch"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    assert train(job(run, *SETTINGS)) is not None
    assert ended(run) == ("complete", None)
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
    assert train(job(run, *SETTINGS)) is not None
    same_end(run, uninterrupted)


# the signals, exit code, how the run ended, by its own account
ONE_SIGNAL = [
    ([SIGTERM], 75, ("preempted", "SIGTERM")),
    ([SIGUSR1, SIGTERM], 75, ("preempted", "SIGUSR1")),  # a cluster's warning, and its end
    ([SIGINT], 130, ("interrupted", "Ctrl-C")),
]


@pytest.mark.parametrize(("signals", "code", "end"), ONE_SIGNAL, ids=["SIGTERM", "SIGUSR1, SIGTERM", "SIGINT"])
def test_in_training_it_stops_after_the_step(uninterrupted, tmp_path, capsys, signals, code, end):
    with pytest.raises(Stopped) as stopped:
        train(job(tmp_path, *settings(*signals, epoch=1, batch=2)))
    assert stopped.value.code == code
    assert ended(tmp_path) == end
    assert last_checkpoint(tmp_path) == (6, 1)  # the second step of the second epoch, of which that batch was the first
    assert Run(tmp_path).result is None
    printed = capsys.readouterr().err
    assert f"{end[1]}: stopped in epoch 2 after step 6" in printed
    assert str(tmp_path / "checkpoints/last.ckpt") in printed
    ends_as(uninterrupted, tmp_path)


@pytest.mark.parametrize(("before", "batch"), [("training", 7), ("validation", 0), ("validation", 1)])
def test_at_the_end_of_an_epoch_it_stops_after_the_validation(uninterrupted, tmp_path, before, batch):
    with pytest.raises(Stopped):
        train(job(tmp_path, *settings(SIGTERM, before=before, epoch=1, batch=batch)))
    assert last_checkpoint(tmp_path) == (8, 2)
    assert history(tmp_path) == history(uninterrupted)[:2]
    ends_as(uninterrupted, tmp_path)


def test_in_the_last_validation_there_is_nothing_left_to_stop(uninterrupted, tmp_path):
    assert train(job(tmp_path, *settings(SIGTERM, before="validation", epoch=2))) is not None
    assert ended(tmp_path) == ("complete", None)
    assert history(tmp_path) == history(uninterrupted)


def test_ctrl_c_once_more_stops_at_once(uninterrupted, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        train(job(tmp_path, *settings(SIGINT, SIGINT, epoch=1, batch=6)))
    assert ended(tmp_path)[0] == "interrupted"
    assert last_checkpoint(tmp_path) == (4, 1)  # from before
    printed = capsys.readouterr().err
    assert "press Ctrl-C again to stop immediately" in printed
    assert f"interrupted immediately; the last checkpoint is {tmp_path / 'checkpoints/last.ckpt'}" in printed
    ends_as(uninterrupted, tmp_path)


@pytest.mark.parametrize(
    ("signum", "kind", "state"), [(SIGTERM, Stopped, "preempted"), (SIGINT, KeyboardInterrupt, "interrupted")]
)
def test_before_training_begins_it_stops_at_once(tmp_path, signum, kind, state):
    with pytest.raises(kind):
        train(job(tmp_path, *settings(signum, before="setup")))
    assert ended(tmp_path)[0] == state
    assert not (tmp_path / "checkpoints").exists()


# signals in their order during training, the exception of the last one, the signal that is kept
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


def test_exit_codes(forked, uninterrupted, tmp_path):
    """Of real processes, one after the other on the same run, which then comes to the same end."""
    for epoch, signals, code, step in ((0, [SIGINT], 130, 2), (1, [SIGTERM], 75, 6), (2, [SIGINT, SIGINT], 130, 8)):
        arguments = settings(*signals, epoch=epoch, batch=3)
        (done,) = forked.run(tmp_path, "train", *arguments, f"hydra.run.dir={tmp_path}")
        assert done.returncode == code, done.stderr
        assert not done.stdout
        assert "resume=true" in done.stderr
        assert "Traceback" not in done.stderr
        assert last_checkpoint(tmp_path)[0] == step
    ends_as(uninterrupted, tmp_path)


def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(forked, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    def codes(run: Path, *arguments: str) -> list[int]:
        ranks = forked.run(tmp_path, "train", *arguments, "trainer.devices=2", f"hydra.run.dir={run}", ranks=2)
        return [rank.returncode for rank in ranks]

    assert codes(whole, *SETTINGS) == [0, 0]
    assert codes(stopped, *settings(SIGUSR1, epoch=1, batch=2)) == [75, 75]
    assert ended(stopped) == ("preempted", "SIGUSR1")
    assert last_checkpoint(stopped) == (6, 1)
    assert codes(stopped, *SETTINGS) == [0, 0]
    same_end(stopped, whole)
