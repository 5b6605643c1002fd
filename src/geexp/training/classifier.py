"""The Lightning module: cross-entropy, SGD, a schedule, errors counted exactly."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.config.schema import OptimConfig, ScheduleConfig
from geexp.data.order import mix
from geexp.training.errors_count import ErrorCount
from geexp.training.loss_watch import LossWatch
from geexp.training.optimizer import make_sgd
from geexp.training.schedules import LearningRate

_ERRORS, _RATE = "training_errors", "learning_rate"


class Classifier(pl.LightningModule):
    """Trains ``model``.

    After each epoch ``metrics`` holds that epoch's ``train/…`` and ``val/…`` figures, and the ``lr`` of its last step.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        *,
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.optim, self.seed = model, optim, seed
        self.rate = LearningRate(schedule)
        self.lr = 0.0  # of the step that is being made; of the first parameter group
        self.loss_watch = LossWatch()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.training_errors, self.validation_errors = ErrorCount(), ErrorCount(confusion=True)
        self.metrics: dict[str, float] = {}

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch, self.training_errors)
        self.loss_watch.add(loss.detach(), self.global_step + 1)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._loss(batch, self.validation_errors)

    def _loss(self, batch: tuple[Tensor, Tensor], errors: ErrorCount) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        errors.add(logits.detach(), labels, loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:  # not when an epoch is entered in the middle
        self.training_errors.reset()

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
        self.validation_errors.reset()
        if self.trainer.state.fn == "fit" and dist.is_available() and dist.is_initialized():
            for buffer in self.buffers():  # every device has statistics of its own; the first one's count
                dist.broadcast(buffer, 0)

    def on_validation_epoch_end(self) -> None:
        self.metrics = {f"val/{name}": value for name, value in self.validation_errors.metrics(self.device).items()}
        if self.trainer.state.fn == "fit":
            of_training = self.training_errors.metrics(self.device)
            self.metrics |= {f"train/{name}": value for name, value in of_training.items()}
            self.metrics["lr"] = self.lr
            self.rate.observe(self.metrics)
        shown = {key: value for key, value in self.metrics.items() if key == "lr" or "error" in key or "loss" in key}
        self.log_dict(shown, prog_bar=False, logger=False)  # History logs them

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_ERRORS] = self.training_errors.totals(self.device)  # of an epoch that may be half done
        checkpoint[_RATE] = self.rate.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_rank == 0 and _ERRORS in checkpoint:  # the sums are of all ranks
            self.training_errors.restore(checkpoint[_ERRORS])
        if _RATE in checkpoint:
            self.rate.load_state_dict(checkpoint[_RATE])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_sgd(self.model, self.optim)
