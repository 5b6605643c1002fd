"""scripts/slurm_requeue.sh, with a scheduler of a few lines in its place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import environment
from tests.training.test_run import history, same_weights

SCRIPT = Path(__file__).parents[2] / "scripts/slurm_requeue.sh"


class Cluster:
    """A folder with an ``srun`` and a ``scontrol``; what they were asked is noted in ``asked``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, folder / "asked"
        (folder / "bin").mkdir()
        self.command("srun", 'echo "srun $*" >> "$ASKED"; "$@"')
        self.command("scontrol", 'echo "scontrol $*" >> "$ASKED"')

    def command(self, name: str, does: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{does}\n")
        path.chmod(0o755)

    def submit(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        root = str(Path(__file__).parents[2])
        variables = {"PATH": path, "ASKED": str(self.asked), "SLURM_JOB_ID": "4711", "PYTHONPATH": root} | variables
        return subprocess.run(
            [str(SCRIPT), *arguments],
            cwd=self.folder,
            env=environment(**variables),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=200,
        )

    def requeued(self) -> list[str]:
        return [line for line in self.asked.read_text().splitlines() if line.startswith("scontrol")]


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 2, 130, 137, 143])
def test_what_has_come_to_its_end_is_not_requeued(cluster, code):
    cluster.command("python", f"exit {code}")
    done = cluster.submit("ge=theta", "callbacks.x={_target_: a b}", PYTHON="python")
    assert done.returncode == code
    assert cluster.asked.read_text() == "srun python -m geexp.train ge=theta callbacks.x={_target_: a b}\n"


def test_what_was_preempted_is_requeued(cluster):
    """Even if the job's shell gets the signal, too, as it does when the whole job is preempted."""
    cluster.command("python", 'kill -TERM "$JOB"; kill -USR1 "$JOB"; sleep 0.3; exit 75')
    cluster.command("srun", 'JOB=$PPID "$@"')
    done = cluster.submit("ge=theta", PYTHON="python", SLURM_RESTART_COUNT="2")
    assert done.returncode == 0, done.stderr
    assert cluster.requeued() == ["scontrol requeue 4711"]
    assert done.stdout.startswith("job 4711, start 3, ")


def test_what_cannot_be_requeued_says_so(cluster):
    cluster.command("scontrol", 'echo "scontrol $*" >> "$ASKED"; exit 1')
    cluster.command("python", "exit 75")
    done = cluster.submit(PYTHON="python")
    assert done.returncode == 75
    assert "job 4711 cannot be requeued; nothing is lost: submit the same command again" in done.stderr


def test_it_is_for_sbatch(cluster):
    done = cluster.submit(SLURM_JOB_ID="")
    assert done.returncode != 0
    assert "start this with sbatch" in done.stderr
    assert not cluster.asked.exists()


def test_the_signals_reach_the_training():
    """The lines for sbatch that all depends on."""
    asked = {line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")}
    assert {"--requeue", "--signal=USR1@120", "--open-mode=append"} <= asked


@pytest.mark.slow
def test_a_training_that_is_preempted_goes_on_in_the_next_job(cluster, tmp_path):
    arguments = ["trainer=cpu", "ge=none", "logger=none", "optim.batch_size=32", "schedule.epochs=2"]
    arguments += ["trainer.limit_train_batches=6", "trainer.limit_val_batches=2"]
    sender = "+callbacks.device_stats={_target_: tests.training.test_stopping.Sender, signals: [10], before: training, "
    sender += "epoch: 1, batch: 1}"  # SIGUSR1, in the second of twelve steps' second half
    run = tmp_path / "run"
    first = cluster.submit(*arguments, sender, f"hydra.run.dir={run}", PYTHON=sys.executable)
    assert first.returncode == 0, first.stderr
    assert cluster.requeued() == ["scontrol requeue 4711"]
    assert json.loads((run / "status.json").read_text())["state"] == "preempted"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 8
    second = cluster.submit(*arguments, f"hydra.run.dir={run}", PYTHON=sys.executable, SLURM_RESTART_COUNT="1")
    assert second.returncode == 0, second.stderr
    assert "going on with" in second.stderr
    assert len(cluster.requeued()) == 1
    straight = tmp_path / "straight"
    assert cluster.submit(*arguments, f"hydra.run.dir={straight}", PYTHON=sys.executable).returncode == 0
    assert history(run) == history(straight)
    same_weights(run, straight)
