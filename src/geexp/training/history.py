"""``history.jsonl``: one row per epoch, only ever appended to. Every curve comes from it; loggers get the same rows."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from geexp.runs.run_files import append_row


class History(pl.Callback):
    """Writes the epoch's row before its checkpoint, so that no checkpointed epoch is without one.

    An epoch that was begun again after an interruption may have two rows; readers take the last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = time.monotonic()
        self._before = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()  # an epoch that is entered in the middle has no start of its own

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start, self._before = time.monotonic(), 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics: dict[str, float] = pl_module.metrics  # type: ignore[assignment]
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(self._seconds(), 3),
            "time": round(time.time(), 3),
            **metrics,
        }
        append_row(self.path, row)
        step = row.pop("step")
        for logger in trainer.loggers:
            logger.log_metrics(row, step)
            logger.save()

    def _seconds(self) -> float:
        """Spent on the epoch, also before an interruption."""
        return self._before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]
