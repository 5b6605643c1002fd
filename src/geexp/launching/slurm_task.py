"""One task of a SLURM job, which is one rank of a training: the function that ``submitit`` calls. No torch."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from geexp.config.errors import PREEMPTED

# Names a file that rank 0 makes to have the job requeued by its batch script.
NOTE = "GEEXP_REQUEUE"


def train_rank(arguments: Sequence[str]) -> None:
    """Run ``python -m geexp.train`` with these arguments as one rank, and end as it has ended.

    SLURM signals the training, which saves and ends, and this process, which only waits: submitit's handlers would
    requeue before anything is saved. After a preemption the exit code is 0, since srun kills the other ranks, which
    still save, after any other.
    """
    signals: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, lambda signum, frame: signals.append(signum))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # SLURM sends it before a SIGTERM
    environment = {**os.environ, **rank_environment(os.environ)}
    environment.pop("HYDRA_FULL_ERROR", None)  # of the sweep, which sets it for itself
    training = subprocess.Popen([sys.executable, "-m", "geexp.train", *arguments], env=environment)
    code = exit_code(training.wait(), asked=bool(signals))
    if code == PREEMPTED:
        if environment["RANK"] == "0":
            Path(environment[NOTE]).touch()
        code = 0
    sys.exit(code)


def rank_environment(slurm: Mapping[str, str]) -> dict[str, str]:
    """torchrun's environment for this rank; the batch script has set MASTER_ADDR and MASTER_PORT for all of them."""
    return {
        "TORCHELASTIC_RUN_ID": slurm["SLURM_JOB_ID"],
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(int(slurm["SLURM_NTASKS"]) // int(slurm["SLURM_NNODES"])),
        "GROUP_RANK": slurm["SLURM_NODEID"],
    }


def exit_code(code: int, *, asked: bool) -> int:
    """128 + n for a training that signal n killed, and ``PREEMPTED`` for any failure after a signal, which may have
    come before there were handlers, or ended the other ranks first. A real error recurs when the run resumes.
    """
    if asked and code:
        return PREEMPTED
    return code if code >= 0 else 128 - code
