"""What happens to trainings on a cluster, made to happen at a known step: callbacks."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class Preempted(pl.Callback):
    """The job is told to save and end, as SLURM tells it before it takes the nodes away, but once only.

    ``starts.jsonl`` in the run's folder says of every start how often the job was requeued and at which step it began.
    """

    def __init__(self, step: int, signal: str = "USR1") -> None:
        self.step, self.signal = step, signal
        self.requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank == 0:
            with (Path(trainer.default_root_dir) / "starts.jsonl").open("a") as file:
                file.write(json.dumps([self.requeued, trainer.global_step]) + "\n")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if trainer.global_rank == 0 and trainer.global_step == self.step and not self.requeued:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
            subprocess.run(["scancel", f"--signal={self.signal}", job])  # which gets it, too, and may die of it


class LastRankFails(pl.Callback):
    """The first rank would wait for it."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if trainer.global_rank == trainer.world_size - 1 and trainer.global_step == 1:
            raise RuntimeError("made to fail")
