"""The Lightning module: cross-entropy, SGD, a schedule, errors counted exactly."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.config.errors import TrainingError
from geexp.config.schema import OptimConfig, ScheduleConfig
from geexp.training.errors_count import ErrorCount
from geexp.training.optimizer import make_sgd
from geexp.training.schedules import lr_factor

_ERRORS = "training_errors"


class Classifier(pl.LightningModule):
    """Trains ``model``.

    After each epoch ``metrics`` holds that epoch's ``train/…`` and ``val/…`` figures, and the ``lr`` of its last step.
    """

    def __init__(
        self, model: nn.Module, optim: OptimConfig, schedule: ScheduleConfig, *, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.model, self.optim, self.schedule = model, optim, schedule
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.training_errors, self.validation_errors = ErrorCount(), ErrorCount()
        self.metrics: dict[str, float] = {}

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch, self.training_errors)

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
        self._lr: float = self.trainer.optimizers[0].param_groups[0]["lr"]  # the schedule moves on after the step

    def on_validation_epoch_start(self) -> None:
        self.validation_errors.reset()

    def on_validation_epoch_end(self) -> None:
        self.metrics = {f"val/{name}": value for name, value in self.validation_errors.metrics(self.device).items()}
        if self.trainer.state.fn == "fit":
            of_training = self.training_errors.metrics(self.device)
            self.metrics |= {f"train/{name}": value for name, value in of_training.items()}
            self.metrics["lr"] = self._lr
            self._require_finite()
        shown = {key: value for key, value in self.metrics.items() if key == "lr" or "error" in key or "loss" in key}
        self.log_dict(shown, prog_bar=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_ERRORS] = self.training_errors.totals(self.device)  # of an epoch that may be half done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.global_rank == 0 and _ERRORS in checkpoint:  # the sums are of all ranks
            self.training_errors.restore(checkpoint[_ERRORS])

    def _require_finite(self) -> None:
        """Stop before the epoch's checkpoint is written, so that the last one is of a network that still works."""
        loss = self.metrics["train/loss"]
        if not math.isfinite(loss):
            raise TrainingError(
                f"the training loss is {loss} in epoch {self.trainer.current_epoch + 1} (learning rate {self._lr:g}): "
                "the run has diverged. Its last checkpoint is of the epoch before; try a lower optim.lr."
            )

    def configure_optimizers(self) -> Any:
        optimizer = make_sgd(self.model, self.optim)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(self.schedule, step / self.trainer.num_training_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
