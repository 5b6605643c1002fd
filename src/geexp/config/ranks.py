"""Which of several processes this one is, as torchrun says it in the environment. No torch."""

import os

from geexp.config.errors import ConfigError


def rank() -> int:
    """0 for the process that writes, logs and speaks; the only one, unless torchrun started several."""
    return int(os.environ.get("RANK", 0)) if _by_torchrun() else 0


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1)) if _by_torchrun() else 1


def srun_tasks() -> int:
    """As how many processes SLURM's srun has started this command; 1 without it."""
    return 1 if _by_torchrun() else int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def restarted() -> bool:
    """Whether a cluster or torchrun gives a command again by itself, which then means to go on."""
    return any(int(os.environ.get(key) or 0) > 0 for key in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def require_ranks(command: str, *, devices: int, nodes: int = 1) -> None:
    """One process per device must have been started.

    Raises:
        ConfigError: naming the command that starts as many as the configuration asks for.
    """
    if devices * nodes == world_size():
        return
    key = "trainer.devices" if command == "train" else "devices"
    if devices * nodes == 1:
        raise ConfigError(
            f"{key}=1, but {world_size()} processes were started, which would all do the same. "
            f"Say {key}={world_size()}, or start one: python -m geexp.{command} …"
        )
    asked = f"{key}={devices}" + (f", trainer.nodes={nodes}" if nodes > 1 else "")
    meeting = f"--nnodes={nodes} --rdzv-backend=c10d --rdzv-id=1 --rdzv-endpoint=<host>:29500"
    where = meeting if nodes > 1 else "--standalone"
    raise ConfigError(
        f"{asked}: one process per device is needed, {devices * nodes}, but the number of those started is "
        f"{world_size()}. Start them with: torchrun {where} --nproc-per-node={devices} -m geexp.{command} …"
    )


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
