"""One task of a SLURM job is one rank of a training: what ``submitit`` calls in it. Loads nothing heavy."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from geexp.config.errors import PREEMPTED

# Where the first rank tells the batch script, which names the file, that the job is to be requeued.
NOTE = "GEEXP_REQUEUE"


def train_rank(arguments: Sequence[str]) -> None:
    """Run ``python -m geexp.train`` with these arguments as one rank, and end as it has ended.

    SLURM sends a signal to every process of a step: to the training, which saves and ends, to its workers, and to this
    one, which only waits. The handlers take the place of submitit's, which would requeue before anything is saved.

    A preemption is no failure: with another exit code than 0 srun would kill the ranks that are not quite as far.
    """
    asked: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, lambda signum, frame: asked.append(signum))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # SLURM sends it before a SIGTERM
    environment = {**os.environ, **rank_environment(os.environ)}
    environment.pop("HYDRA_FULL_ERROR", None)  # of the sweep, which sets it for itself
    training = subprocess.Popen([sys.executable, "-m", "geexp.train", *arguments], env=environment)
    code = exit_code(training.wait(), asked=bool(asked))
    if code == PREEMPTED:
        if environment["RANK"] == "0":
            Path(environment[NOTE]).touch()
        code = 0
    sys.exit(code)


def rank_environment(slurm: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would say to this rank; the batch script has set MASTER_ADDR and MASTER_PORT for all of them."""
    return {
        "TORCHELASTIC_RUN_ID": slurm["SLURM_JOB_ID"],
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(int(slurm["SLURM_NTASKS"]) // int(slurm["SLURM_NNODES"])),
        "GROUP_RANK": slurm["SLURM_NODEID"],
    }


def exit_code(code: int, *, asked: bool) -> int:
    """What the end of a training means; of one that was killed by signal n, 128 + n.

    One that was asked to stop before it could listen, or whose other ranks were gone before it had saved, has not
    failed of itself. If it has, it does so again when it goes on.
    """
    if asked and code:
        return PREEMPTED
    return code if code >= 0 else 128 - code
