"""The devices of this machine, shared out among the jobs that train side by side."""

import os
import subprocess
from collections.abc import Sequence
from typing import Any

from geexp.config.errors import ConfigError
from geexp.launching.jobs import SweepJob


class Devices:
    """Those that are free, by the names that CUDA knows them by; without GPUs, as many places for processes.

    Args:
        jobs: all that shall run.
        wanted: ``launcher.devices``: a number, a list of names, or ``auto`` for all the GPUs there are. Without GPUs
            ``auto`` is what the largest job needs, so that one runs after another.

    Raises:
        ConfigError: if a job needs more than there are, or several nodes.
    """

    def __init__(self, jobs: Sequence[SweepJob], wanted: Any) -> None:
        largest = max((job.config.trainer.devices for job in jobs), default=1)
        on_gpus = any(job.config.trainer.accelerator in ("auto", "gpu") for job in jobs)
        gpus = visible_gpus() if on_gpus else []
        self._gpus = bool(gpus)
        if isinstance(wanted, list):
            names = [str(name) for name in wanted]
        elif wanted == "auto":
            names = gpus or [str(place) for place in range(largest)]
        else:
            if gpus and wanted > len(gpus):
                raise ConfigError(f"launcher.devices={wanted}: this machine has {len(gpus)} GPUs.")
            names = (gpus or [str(place) for place in range(wanted)])[:wanted]
        self.total = len(names)
        self._free = names
        for job in jobs:
            if job.config.trainer.nodes > 1:
                raise ConfigError(
                    f"trainer.nodes={job.config.trainer.nodes}: this launcher starts jobs on one node. On a cluster "
                    "say hydra/launcher=geexp_slurm; elsewhere start torchrun on every node (README, Sweeps)."
                )
            if job.config.trainer.devices > self.total:
                raise ConfigError(
                    f"trainer.devices={job.config.trainer.devices}: a job needs that many, and there are {self.total} "
                    f"{'GPUs' if self._gpus else 'places'} to share out (launcher.devices={wanted})."
                )

    def take(self, number: int) -> list[str] | None:
        """So many devices, or None if fewer are free."""
        if number > len(self._free):
            return None
        taken, self._free = self._free[:number], self._free[number:]
        return taken

    def give_back(self, taken: list[str]) -> None:
        self._free = sorted([*self._free, *taken], key=lambda name: (len(name), name))

    def environment(self, taken: Sequence[str]) -> dict[str, str]:
        """What tells a job's processes that these are theirs."""
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(taken)} if self._gpus else {}
        return gpus | threads_of_each(self.total)


def threads_of_each(processes: int) -> dict[str, str]:
    """The environment in which so many processes share this machine's processors evenly."""
    if processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, processors // processes))}


def visible_gpus() -> list[str]:
    """The names of the GPUs that this process may use: those in CUDA_VISIBLE_DEVICES, or all that the driver lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
