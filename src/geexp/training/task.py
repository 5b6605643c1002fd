"""The ``Task`` protocol of ``Classification`` and ``Detection``, and the base class of their Lightning modules."""

from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn

from geexp.config.schema import OptimConfig, ScheduleConfig, TrainConfig
from geexp.data.order import mix
from geexp.operators.tail import choices
from geexp.runs.metrics import Score
from geexp.training.metrics import NonFiniteWatch
from geexp.training.optimizer import make_optimizer
from geexp.training.schedules import LearningRate

_RATE = "learning_rate"
_CHOICES = "operator_choices"


class TrainingModule(pl.LightningModule):
    """Trains ``model`` with the optimiser and schedule of the configuration; ``score`` is its main metric.

    After each epoch ``metrics`` holds the ``train/…`` and ``val/…`` metrics and the ``lr`` of the last step; after an
    evaluation only ``val/…`` metrics. Subclasses must pass every training loss to ``nan_watch``.
    """

    score: Score

    def __init__(self, model: nn.Module, optim: OptimConfig, schedule: ScheduleConfig, *, seed: int) -> None:
        super().__init__()
        self.model, self.optim, self.seed = model, optim, seed
        self.rate = LearningRate(schedule)
        self.lr = 0.0  # of the current step, first parameter group
        self.nan_watch = NonFiniteWatch()
        self.metrics: dict[str, Any] = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Learning rate and random numbers (dropout) are functions of the step, without a state to be restored.
        torch.manual_seed(mix(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))
        steps_per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        factor = self.rate.factor(self.global_step, int(steps_per_epoch))
        groups = self.trainer.optimizers[0].param_groups
        for group in groups:
            group["lr"] = group["base_lr"] * factor
        self.lr = groups[0]["lr"]

    def on_validation_start(self) -> None:
        # cuDNN's choice of the fastest convolutions differs from process to process, and so would the evaluation's.
        self._benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False

    def on_validation_end(self) -> None:
        torch.backends.cudnn.benchmark = self._benchmark

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == "fit" and dist.is_available() and dist.is_initialized():
            for buffer in self.buffers():  # BN statistics differ between devices; use rank 0's
                dist.broadcast(buffer, 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RATE] = self.rate.state_dict()
        checkpoint[_CHOICES] = choices.export()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if _RATE in checkpoint:
            self.rate.load_state_dict(checkpoint[_RATE])
        choices.restore(checkpoint.get(_CHOICES, {}))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.optim)


class Charts(Protocol):
    """Charts of the last validation."""

    def to_wandb(self) -> dict[str, Any]:
        """W&B objects by key."""


class Task(Protocol):
    """Everything that differs between classification and detection. Tasks have no state."""

    detects: bool  # whether configurations must have a detector; equal to config.detects

    @property
    def summary_metrics(self) -> tuple[str, ...]:
        """Keys of the metrics in the W&B summary of a finished run."""

    def data(self, config: TrainConfig) -> pl.LightningDataModule:
        """The data module, with its files opened.

        Its ``record()`` returns the ``DataRecord``, and its ``account()``, which every rank must call, the ``feed``
        entry of ``result.json``.

        Raises:
            DataError, ConfigError: for data that are damaged, missing or do not match the configuration.
        """

    def network(self, config: TrainConfig) -> nn.Module:
        """The untrained network, as in ``TrainingModule.model``.

        Raises:
            ConfigError: for settings that the network does not support.
        """

    def module(self, config: TrainConfig, data: Any, *, pretrained: bool = True) -> TrainingModule:
        """The module that trains and validates ``network(config)`` on the data of ``data(config)``.

        Args:
            pretrained: load the initial weights, if the configuration names any.
        """

    def result_fields(self, config: TrainConfig, module: Any) -> dict[str, Any]:
        """Fields of ``Result`` that depend on the task: ``complexity``, and ``backbone`` for a detector."""

    def final_charts(self, trainer: pl.Trainer, module: Any, data: Any, folder: Path) -> Charts | None:
        """Charts of the last validation, also written as images to the run's folder. Every rank must call it.

        None on ranks other than 0, and if this process has not validated.
        """

    def describe(self, measured: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
        """Lines of text that compare the metrics of an evaluation with ``recorded`` ones, which may be empty."""
