"""One task of a SLURM job, that is, one rank of a run: the function called by ``submitit``. No torch."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from geexp.config.errors import PREEMPTED

# The environment variable with the path of a file; rank 0 creates it to request a requeue by the batch script.
NOTE = "GEEXP_REQUEUE"


def train_rank(arguments: Sequence[str]) -> None:
    """Run ``python -m geexp.train`` with these arguments as one rank, and exit with its exit code.

    SLURM signals both the training, which saves and ends, and this process, which only waits: submitit's handlers would
    requeue the job before a checkpoint is saved. After a preemption the exit code is 0; any other code would make srun
    kill the other ranks while they still save.
    """
    signals: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, lambda signum, frame: signals.append(signum))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # SLURM sends SIGCONT before SIGTERM
    environment = {**os.environ, **rank_environment(os.environ)}
    environment.pop("HYDRA_FULL_ERROR", None)  # set by the sweep for its own process
    training = subprocess.Popen([sys.executable, "-m", "geexp.train", *arguments], env=environment)
    code = exit_code(training.wait(), asked=bool(signals))
    if code == PREEMPTED:
        if environment["RANK"] == "0":
            Path(environment[NOTE]).touch()
        code = 0
    sys.exit(code)


def rank_environment(slurm: Mapping[str, str]) -> dict[str, str]:
    """torchrun's environment variables for this rank, except MASTER_ADDR and MASTER_PORT from the batch script."""
    return {
        "TORCHELASTIC_RUN_ID": slurm["SLURM_JOB_ID"],
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(int(slurm["SLURM_NTASKS"]) // int(slurm["SLURM_NNODES"])),
        "GROUP_RANK": slurm["SLURM_NODEID"],
    }


def exit_code(code: int, *, asked: bool) -> int:
    """The exit code of a rank: 128 + n if it was killed by signal n, ``PREEMPTED`` for any failure after a signal.

    The signal may have arrived before the handlers were installed, or have ended other ranks first. A real error will
    recur when the run resumes.
    """
    if asked and code:
        return PREEMPTED
    return code if code >= 0 else 128 - code
