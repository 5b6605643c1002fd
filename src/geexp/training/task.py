"""What is trained: the ``Task`` protocol of ``Classification`` and ``Detection``, and the module that they share."""

from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn

from geexp.config.schema import OptimConfig, ScheduleConfig, TrainConfig
from geexp.data.order import mix
from geexp.runs.metrics import Score
from geexp.training.metrics import NonFiniteWatch
from geexp.training.optimizer import make_optimizer
from geexp.training.schedules import LearningRate

_RATE = "learning_rate"


class TrainingModule(pl.LightningModule):
    """Trains ``model``, which is judged by ``score``, with the optimiser and the schedule of the configuration.

    After each epoch ``metrics`` holds its ``train/…`` and ``val/…`` figures and the ``lr`` of its last step; after an
    evaluation only the ``val/…`` ones. ``nan_watch`` must be given every training loss.
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
        # Neither the rate nor the random numbers of a step (dropout) have a state that an interruption could lose.
        torch.manual_seed(mix(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))
        steps_per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        factor = self.rate.factor(self.global_step, int(steps_per_epoch))
        groups = self.trainer.optimizers[0].param_groups
        for group in groups:
            group["lr"] = group["base_lr"] * factor
        self.lr = groups[0]["lr"]

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == "fit" and dist.is_available() and dist.is_initialized():
            for buffer in self.buffers():  # each device has its own BN statistics; rank 0's are used
                dist.broadcast(buffer, 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RATE] = self.rate.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if _RATE in checkpoint:
            self.rate.load_state_dict(checkpoint[_RATE])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.optim)


class Charts(Protocol):
    """Charts of the last validation."""

    def to_wandb(self) -> dict[str, Any]:
        """W&B's objects by key."""


class Task(Protocol):
    """All that depends on what is trained. Tasks have no state."""

    detects: bool  # whether it takes configurations with a detector; config.detects must be equal

    @property
    def summary_metrics(self) -> tuple[str, ...]:
        """Keys of the metrics that stand at the top of a finished run at W&B."""

    def data(self, config: TrainConfig) -> pl.LightningDataModule:
        """The data module, with its files opened.

        Its ``account()``, which every rank must call, is the ``feed`` entry of ``result.json``.

        Raises:
            DataError, ConfigError: for data that are damaged, missing or not what the configuration states.
        """

    def network(self, config: TrainConfig) -> nn.Module:
        """The network alone, untrained, as ``TrainingModule.model`` holds it.

        Raises:
            ConfigError: for settings that the network does not support.
        """

    def module(self, config: TrainConfig, data: Any, *, pretrained: bool = True) -> TrainingModule:
        """The module that trains and validates ``network(config)`` on the result of ``data(config)``.

        Args:
            pretrained: load the weights that training starts from, if the configuration names any.
        """

    def result_fields(self, config: TrainConfig, module: Any) -> dict[str, Any]:
        """Fields of ``Result`` that depend on the task: ``complexity``, and ``backbone`` for a detector."""

    def final_charts(self, trainer: pl.Trainer, module: Any, data: Any, folder: Path) -> Charts | None:
        """Charts of the last validation, also as pictures in the run's folder. Every rank must call it.

        None if this process made no validation, and on other ranks than the first.
        """

    def describe(self, measured: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
        """Lines of text that compare the metrics of an evaluation with the recorded ones, which may be empty."""
