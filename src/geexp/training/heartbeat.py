"""Tells ``status.json`` where training is."""

from typing import Any

import pytorch_lightning as pl

from geexp.records.status import Status


class Heartbeat(pl.Callback):
    """Notes epoch (from 1) and steps made; the status file is written by its own clock."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note(trainer)

    def _note(self, trainer: pl.Trainer) -> None:
        self.status.at(epoch=trainer.current_epoch + 1, step=trainer.global_step)
