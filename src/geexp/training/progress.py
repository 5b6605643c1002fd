"""What a person sees while a run trains, on standard error."""

import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar

from geexp.config.ranks import rank
from geexp.config.schema import ScheduleConfig
from geexp.runs.metrics import Score


def progress() -> Callback:
    """A live bar on a terminal; one line per epoch in logs and batch jobs, where a bar prints nothing.

    Of several ranks the first one speaks.
    """
    if rank() != 0:
        return Callback()
    return TerminalBar() if sys.stderr.isatty() else EpochLines()


class TerminalBar(RichProgressBar):
    """Lightning's bar, with the error after the last epoch, without the version number, and epochs counted from 1."""

    def __init__(self) -> None:
        super().__init__(leave=True, console_kwargs={"stderr": True})

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, int | str | float | dict]:
        metrics: dict[str, float] = pl_module.metrics  # type: ignore[assignment]
        score: Score = pl_module.score  # type: ignore[assignment]
        return {f"val-{score.name.replace(' ', '-')}": f"{metrics[score.key]:.2f}%"} if score.key in metrics else {}

    def _get_train_description(self, current_epoch: int) -> str:
        return epoch_of(self.trainer, current_epoch)


class EpochLines(Callback):
    """One line when an epoch has been validated."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()  # for an epoch that is entered in the middle

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics: dict[str, float] = pl_module.metrics  # type: ignore[assignment]
        score: Score = pl_module.score  # type: ignore[assignment]
        seconds = time.monotonic() - self._start
        of_training = score.key.replace("val/", "train/")
        training = f", {score.name} {metrics[of_training]:.2f} %" if of_training in metrics else ""
        print(
            f"{epoch_of(trainer, trainer.current_epoch)}  train loss {metrics['train/loss']:.3f}{training}  "
            f"val {score.name} {metrics[score.key]:.2f} %  {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def epoch_of(trainer: pl.Trainer, epoch: int) -> str:
    """``epoch 3/300``, or ``epoch 3, step 1,170 of 64,000`` where the schedule counts iterations."""
    if trainer.max_epochs != -1:
        return f"epoch {epoch + 1}/{trainer.max_epochs}"
    schedule: ScheduleConfig = trainer.lightning_module.rate.schedule  # type: ignore[assignment, union-attr]
    return f"epoch {epoch + 1}, step {trainer.global_step:,} of {schedule.iterations:,}"
