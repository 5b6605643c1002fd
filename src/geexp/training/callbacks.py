"""Callbacks that write the run's files (checkpoints, history, status) and show progress on standard error."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers import Logger
from rich.progress import Progress

from geexp.config.process import PlainConsole
from geexp.config.ranks import rank
from geexp.data.parallel import bars_are_shown
from geexp.runs.run import CheckpointInfo, Run
from geexp.runs.run_files import BEST, LAST, append_row
from geexp.runs.status import StatusFile
from geexp.training.checkpoints import INFO
from geexp.training.lightning_private import DescribedProgressBar
from geexp.training.stopping import Stopped


class RunInCheckpoint(pl.Callback):
    """Adds ``CheckpointInfo`` to every checkpoint."""

    def __init__(self, config: dict[str, Any], *, run_id: str) -> None:
        self.config, self.run_id = config, run_id
        self.epochs = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs = trainer.current_epoch + 1

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        info = CheckpointInfo(self.config, self.run_id, self.epochs, dict(pl_module.metrics))
        checkpoint[INFO] = asdict(info)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        info = CheckpointInfo(**checkpoint[INFO])
        self.epochs, pl_module.metrics = info.epoch, dict(info.metrics)


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` before the first step, after every validation, and every ``every_n_steps``.

    Args:
        every_n_steps: None: no checkpoints within an epoch, so that a killed run repeats its epoch from the start.
        stop: returns the signal to stop at this step, equal on all ranks, or 0. After a signal the callback writes a
            checkpoint and raises ``Stopped``.
    """

    def __init__(self, folder: Path, *, every_n_steps: int | None, stop: Callable[[], int]) -> None:
        self.path, self.every_n_steps, self.stop = folder / LAST, every_n_steps, stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # checkpoints do not contain accumulated gradients
        if trainer.is_last_batch or trainer.should_stop:
            return  # validation follows; a run resumed from here would skip it
        if self.stop() or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.path)
            self._stop_if_asked()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        if not trainer.should_stop and trainer.current_epoch + 1 != trainer.max_epochs:  # else training is complete
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise Stopped(self.stop())


class BestCheckpoint(Checkpoint):
    """Writes ``checkpoints/best.ckpt`` for the epoch with the best score (top-1 error or mAP); the first if equal."""

    def __init__(self) -> None:
        self.best: dict[str, float] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        metrics, score = pl_module.metrics, pl_module.score
        if self.best is None or score.better(metrics[score.key], than=self.best[score.key]):
            self.best = {"epoch": trainer.current_epoch + 1, **metrics}
            trainer.save_checkpoint(Run(Path(trainer.default_root_dir)).checkpoint(BEST))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class _EpochClock(pl.Callback):
    """Measures the time since the start of the epoch, or since it was resumed."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()  # on_train_epoch_start is not called when training resumes within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start


class History(_EpochClock):
    """Appends a row per epoch to ``history.jsonl``, and sends it to the loggers.

    The row is written before the checkpoint, so that no checkpointed epoch lacks one. An epoch repeated after an
    interruption may have two rows; readers use the last.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._before = path, 0.0  # seconds of the epoch before an interruption

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._before = 0.0

    def seconds(self) -> float:
        return self._before + super().seconds()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(self.seconds(), 3),
            "time": round(time.time(), 3),
            **pl_module.metrics,
        }
        append_row(self.path, row)
        log_row(row, trainer.loggers)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]


def log_row(row: dict[str, Any], loggers: Sequence[Logger]) -> None:
    """Send a row of the history to the loggers."""
    metrics = {key: value for key, value in row.items() if key != "step"}
    for logger in loggers:
        logger.log_metrics(metrics, row["step"])
        logger.save()


class Heartbeat(pl.Callback):
    """Passes epoch, step and batch count to the status file, which a timer writes."""

    def __init__(self, status: StatusFile) -> None:
        self.status = status
        self.batches = 0  # includes validation, during which there are no steps

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.status.at(epoch=trainer.current_epoch + 1, step=trainer.global_step, batches=self.batches)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches += 1
        self.on_train_start(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_train_batch_end(trainer)


def progress() -> Callback:
    """A live bar on a terminal, one line per epoch elsewhere (logs, batch jobs); on rank 0 only."""
    if rank() != 0:
        return Callback()
    return TerminalBar() if sys.stderr.isatty() else EpochLines()


class TerminalBar(DescribedProgressBar):
    """Lightning's bar with the score of the last epoch and epochs counted from 1."""

    def __init__(self) -> None:
        super().__init__(leave=True, console_kwargs={"stderr": True})

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, int | str | float | dict]:
        metrics, score = pl_module.metrics, pl_module.score
        return {f"val-{score.name.replace(' ', '-')}": f"{metrics[score.key]:.2f}%"} if score.key in metrics else {}

    def describe_epoch(self, current_epoch: int) -> str:
        return epoch_of(self.trainer, current_epoch)


class EvaluationBar(pl.Callback):
    """A bar over the batches of an evaluation, on a terminal; gone afterwards. Lightning's bar would stay."""

    def __init__(self) -> None:
        self._bar = Progress(console=PlainConsole(stderr=True), transient=True, disable=not bars_are_shown())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._task = self._bar.add_task("evaluating", total=sum(trainer.num_val_batches))
        self._bar.start()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._bar.advance(self._task)

    def on_validation_end(self, *_: Any) -> None:
        self._bar.stop()

    def on_exception(self, *_: Any) -> None:
        self._bar.stop()


class EpochLines(_EpochClock):
    """One line after the validation of every epoch."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        metrics, score = pl_module.metrics, pl_module.score
        training_key = score.key.replace("val/", "train/")
        training = f", {score.name} {metrics[training_key]:.2f} %" if training_key in metrics else ""
        print(
            f"{epoch_of(trainer, trainer.current_epoch)}  train loss {metrics['train/loss']:.3f}{training}  "
            f"val {score.name} {metrics[score.key]:.2f} %  {self.seconds():.0f} s",
            file=sys.stderr,
            flush=True,
        )


def epoch_of(trainer: pl.Trainer, epoch: int) -> str:
    """``epoch 3/300``, or ``epoch 3, step 1,170 of 64,000`` where the schedule counts iterations."""
    if trainer.max_epochs != -1:
        return f"epoch {epoch + 1}/{trainer.max_epochs}"
    module: Any = trainer.lightning_module
    return f"epoch {epoch + 1}, step {trainer.global_step:,} of {module.rate.schedule.iterations:,}"
