"""Callbacks that make faults happen at a known point of a training.

Importing this module keeps them out of the identity of runs, so that a run resumes without them.
"""

import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from torch import nn

from geexp.runs import identity
from geexp.training.stopping import SafePoints


class Poison(pl.Callback):
    """One rank's images of a step are no numbers."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if trainer.global_step + 1 == self.step and trainer.global_rank == self.rank:
            batch[0].fill_(torch.nan)


class PoisonValidation(pl.Callback):
    """The images that an epoch is validated with are no numbers."""

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        batch[0].fill_(torch.nan)


class Full(pl.Callback):
    """From the start of an epoch on, no room is left for a file: writing it gives ENOSPC.

    Args:
        name: of a file below the run's folder, to which lines are added, or which is written aside and renamed.
    """

    def __init__(self, name: str, epoch: int) -> None:
        self.name, self.epoch = name, epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = Path(trainer.default_root_dir) / self.name
        if trainer.current_epoch == self.epoch and trainer.global_rank == 0:
            if path.suffix == ".jsonl":
                path.rename(f"{path}.real")
            else:
                path = path.with_name(f".writing-{path.name}-{os.getpid()}")
            path.symlink_to("/dev/full")


class ClockJumps(pl.Callback):
    """The clock on the wall is set by a day, back and forth, before every batch."""

    def __init__(self) -> None:
        self._time, self._day = time.time, 86_400

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        self._day = -self._day
        time.time = lambda: self._time() + self._day

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        time.time = self._time


class WithoutNormalisation(pl.Callback):
    """Takes out what depends on which images of a step are seen together."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for module in list(pl_module.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())


class Stuck(pl.Callback):
    """After so many steps nothing happens on a rank for a minute: time for a test to do something to the process."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            time.sleep(60)


class RefusedWaits(pl.Callback):
    """From the second batch on, torch raises an error where a step of training or validation waits for the GPU.

    It may wait where the ranks agree on signals, which is once in ten steps.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        (safe_points,) = (one for one in trainer.callbacks if isinstance(one, SafePoints))
        agree = safe_points._agree

        def agree_in_peace(*arguments: Any, **options: Any) -> None:
            mode = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("default")
            agree(*arguments, **options)
            torch.cuda.set_sync_debug_mode(mode)

        safe_points._agree = agree_in_peace

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    on_validation_batch_end = on_train_batch_end

    def on_validation_start(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    on_validation_epoch_end = on_exception = on_validation_start


class KillHelper(pl.Callback):
    """Kills a child of this process, as the system does when memory is short, before the second epoch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            (child,) = [child for child in psutil.Process().children() if child.name() == self.name]
            child.kill()
            time.sleep(0.5)


class Sender(pl.Callback):
    """Sends ``signals`` to its own process, before the set-up or before a batch of training or of validation.

    On the last rank, if there are several.
    """

    def __init__(self, signals: list[int], before: str, epoch: int = 0, batch: int = 0) -> None:
        self.signals, self.point = signals, (before, epoch, batch)

    def reached(self, trainer: pl.Trainer, *point: object) -> None:
        if point == self.point and trainer.global_rank == trainer.world_size - 1:
            for signum in self.signals:
                os.kill(os.getpid(), signum)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.reached(trainer, "setup", 0, 0)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        self.reached(trainer, "training", trainer.current_epoch, batch_idx)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.reached(trainer, "validation", trainer.current_epoch, batch_idx)


identity._WATCHING |= {f"{__name__}.{kind.__name__}" for kind in pl.Callback.__subclasses__()}
