"""What every Lightning module of ours shares: SGD at the schedule's rate, with nothing that an interruption loses."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn

from geexp.config.schema import OptimConfig, ScheduleConfig
from geexp.data.order import mix
from geexp.runs.metrics import Score
from geexp.training.loss_watch import LossWatch
from geexp.training.optimizer import make_optimizer
from geexp.training.schedules import LearningRate

_RATE = "learning_rate"


class Learner(pl.LightningModule):
    """Trains ``model``, which is judged by ``score``.

    After each epoch ``metrics`` holds that epoch's ``train/…`` and ``val/…`` figures, and the ``lr`` of its last step.
    """

    score: Score

    def __init__(self, model: nn.Module, optim: OptimConfig, schedule: ScheduleConfig, *, seed: int) -> None:
        super().__init__()
        self.model, self.optim, self.seed = model, optim, seed
        self.rate = LearningRate(schedule)
        self.lr = 0.0  # of the step that is being made; of the first parameter group
        self.loss_watch = LossWatch()
        self.metrics: dict[str, Any] = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Neither the rate nor what is drawn in a step (dropout) has a state: an interruption has nothing to lose.
        torch.manual_seed(mix(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))
        steps_per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        factor = self.rate.factor(self.global_step, int(steps_per_epoch))
        groups = self.trainer.optimizers[0].param_groups
        for group in groups:
            group["lr"] = group["base_lr"] * factor
        self.lr = groups[0]["lr"]

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == "fit" and dist.is_available() and dist.is_initialized():
            for buffer in self.buffers():  # every device has statistics of its own; the first one's count
                dist.broadcast(buffer, 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RATE] = self.rate.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if _RATE in checkpoint:
            self.rate.load_state_dict(checkpoint[_RATE])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.optim)
