"""``history.jsonl``: one row per epoch, only ever appended to. Every curve comes from it."""

import time
from pathlib import Path

import pytorch_lightning as pl

from geexp.records.run_files import append_row


class History(pl.Callback):
    """Writes the epoch's row before its checkpoint, so that no checkpointed epoch is without one.

    An epoch that was begun again after an interruption may have two rows; readers take the last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics: dict[str, float] = pl_module.metrics  # type: ignore[assignment]
        append_row(
            self.path,
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "seconds": round(time.monotonic() - self._start, 3),
                "time": round(time.time(), 3),
                **metrics,
            },
        )
