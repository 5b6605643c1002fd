"""Rank and world size of this process, from torchrun's environment variables. No torch."""

import os

from geexp.config.errors import ConfigError


def rank() -> int:
    """This process's rank; 0, the rank that writes, logs and prints, without torchrun."""
    return int(os.environ.get("RANK", 0)) if _by_torchrun() else 0


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1)) if _by_torchrun() else 1


def srun_tasks() -> int:
    """The number of processes in which SLURM's srun has started this command; 1 without srun."""
    return 1 if _by_torchrun() else int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def restarted() -> bool:
    """Whether SLURM or torchrun has restarted this command by itself, so that it must resume."""
    return any(int(os.environ.get(key) or 0) > 0 for key in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def require_ranks(command: str, *, devices: int, nodes: int = 1) -> None:
    """Check that one process per device has been started.

    Raises:
        ConfigError: if not, with the command that starts the right number.
    """
    if devices * nodes == world_size():
        return
    key = "trainer.devices" if command == "train" else "devices"
    if devices * nodes == 1:
        raise ConfigError(
            f"{key}=1, but {world_size()} processes were started, which would all do the same work. "
            f"Set {key}={world_size()}, or start one process: python -m geexp.{command} …"
        )
    asked = f"{key}={devices}" + (f", trainer.nodes={nodes}" if nodes > 1 else "")
    meeting = f"--nnodes={nodes} --rdzv-backend=c10d --rdzv-id=1 --rdzv-endpoint=<host>:29500"
    where = meeting if nodes > 1 else "--standalone"
    raise ConfigError(
        f"{asked}: needs one process per device, {devices * nodes} in all, but the number of started processes is "
        f"{world_size()}. Start them with: torchrun {where} --nproc-per-node={devices} -m geexp.{command} …"
    )


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
