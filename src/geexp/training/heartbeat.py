"""Tells ``status.json`` where training is."""

from typing import Any

import pytorch_lightning as pl

from geexp.runs.status import StatusFile


class Heartbeat(pl.Callback):
    """Notes epoch (from 1), steps made and batches seen; the status file is written by its own clock."""

    def __init__(self, status: StatusFile) -> None:
        self.status = status
        self.batches = 0  # also of validations, in which a run makes no steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        self._note(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches += 1
        self._note(trainer)

    def _note(self, trainer: pl.Trainer) -> None:
        self.status.at(epoch=trainer.current_epoch + 1, step=trainer.global_step, batches=self.batches)
