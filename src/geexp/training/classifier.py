"""The Lightning module of classification: cross-entropy, errors counted exactly."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.config.schema import OptimConfig, ScheduleConfig
from geexp.runs.metrics import TOP1_ERROR
from geexp.training.errors_count import ErrorCount
from geexp.training.learner import Learner

_ERRORS = "training_errors"


class Classifier(Learner):
    """Trains ``model``, which is judged by its top-1 error."""

    score = TOP1_ERROR

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        *,
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__(model, optim, schedule, seed=seed)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.training_errors, self.validation_errors = ErrorCount(), ErrorCount(confusion=True)

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

    def on_validation_epoch_start(self) -> None:
        self.validation_errors.reset()
        super().on_validation_epoch_start()

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
        super().on_save_checkpoint(checkpoint)
        checkpoint[_ERRORS] = self.training_errors.totals(self.device)  # of an epoch that may be half done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.global_rank == 0 and _ERRORS in checkpoint:  # the sums are of all ranks
            self.training_errors.restore(checkpoint[_ERRORS])
