"""Callbacks for trainings that the tests launch. They are part of a run's identity."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from geexp.runs.identity import flat
from geexp.runs.run_files import write_json
from geexp.training.stopping import SafePoints


class Puppet(pl.Callback):
    """Obeys a test at the start of a batch, in any rank of any job of the same command.

    It writes its process to ``<folder>/<rank>.at`` and reads ``<folder>/<rank>.do``, where ``<rank>`` is
    ``<ge>-<number of ranks>-<rank>``: ``wait`` while the file exists, or once ``raise``, ``exit`` with code 0, or
    ``foreign <run>``: exit with that run's result in place of its own.
    """

    def __init__(self, folder: str, epoch: int = 1, batch: int = 2) -> None:
        self.folder, self.point = Path(folder), (epoch, batch)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if (trainer.current_epoch, batch_idx) != self.point:
            return
        (config,) = [flat(callback.config) for callback in trainer.callbacks if isinstance(callback, SafePoints)]
        name = f"{config['ge.variant']}-{trainer.world_size}-{trainer.global_rank}"
        write_json(self.folder / f"{name}.at", os.getpid())
        order = self.folder / f"{name}.do"
        if not order.exists():
            return
        what, _, detail = order.read_text().partition(" ")
        while what == "wait" and order.exists():
            time.sleep(0.05)
        order.unlink(missing_ok=True)
        if what == "raise":
            raise RuntimeError("made to fail")
        if what == "foreign":
            shutil.copy(Path(detail) / "result.json", trainer.default_root_dir)
        if what in ("exit", "foreign"):
            os._exit(0)


class LastRankFails(pl.Callback):
    """Raises on one rank while the others go on."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if trainer.global_rank == trainer.world_size - 1 and trainer.global_step == 1:
            raise RuntimeError("made to fail")


class Preempted(pl.Callback):
    """Has SLURM signal the job once before a step, as before it takes the nodes away.

    Each start adds the job's number of requeues and its first step to ``starts.jsonl`` in the run's folder.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank == 0:
            with (Path(trainer.default_root_dir) / "starts.jsonl").open("a") as file:
                file.write(json.dumps([self.requeued, trainer.global_step]) + "\n")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if trainer.global_rank == 0 and trainer.global_step == self.step and not self.requeued:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
            subprocess.run(["scancel", "--signal=USR1", job])  # which gets the signal itself, and may end by it
