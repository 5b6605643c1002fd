"""Killed with SIGKILL at random moments and started again, a training ends as if nobody had; see the script."""

from pathlib import Path

import pytest

from geexp.training.run import train
from tests.conftest import python
from tests.support.configuration import job
from tests.support.runs import history

SCRIPT = Path(__file__).parents[2] / "scripts/chaos.py"


def chaos(*options: str) -> str:
    done = python(str(SCRIPT), *options, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_one_run():
    """Killed in the first epoch, and in the third while it writes a checkpoint."""
    out = chaos("--runs=1", "--seed=8")
    assert "2 kills" in out
    assert "1 of 1 runs equal" in out


def written(path: Path) -> tuple[int, int]:
    """When a file was written, and which one it is; reading it changes neither."""
    return path.stat().st_mtime_ns, path.stat().st_ino


# Over after the last epoch, by a plateau in the second, in the middle of the second: five steps an epoch
ENDS = {
    "epochs": ("schedule.epochs=1", 5),
    "plateau": ("schedule=plateau schedule.reductions=0 schedule.patience=0 schedule.threshold=0.99", 10),
    "iterations": ("schedule=preact_cifar schedule.iterations=7 schedule.warmup=1 schedule.milestones=[3]", 7),
}


@pytest.mark.parametrize(("schedule", "steps"), ENDS.values(), ids=ENDS)
def test_between_the_last_checkpoint_and_the_result(tmp_path, schedule, steps):
    """Nothing is trained or written again; only the result was missing."""
    batches = ["optim.batch_size=32", "trainer.limit_train_batches=5", "trainer.limit_val_batches=1"]
    run = job(tmp_path, "trainer=cpu", "logger=none", *batches, *schedule.split())
    first = train(run)
    (tmp_path / "result.json").unlink()
    last, rows = written(tmp_path / "checkpoints/last.ckpt"), history(tmp_path)
    assert rows[-1]["step"] == steps
    again = train(run)
    assert again.metrics == first.metrics
    assert history(tmp_path) == rows
    assert written(tmp_path / "checkpoints/last.ckpt") == last


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "runs"), [(1, 4), (2, 2)])
def test_several_runs(ranks, runs):
    assert f"{runs} of {runs} runs equal" in chaos(f"--runs={runs}", f"--ranks={ranks}")
