"""The classification task: cross-entropy training, scored by top-1 error."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.backbones.complexity import count_complexity
from geexp.config.schema import TrainConfig
from geexp.data.module import ImageData
from geexp.runs.metrics import TOP1_ERROR
from geexp.training.metrics import ErrorCount
from geexp.training.network import network_of
from geexp.training.task import TrainingModule
from geexp.training.wandb_content import CONFUSED, CONFUSION
from geexp.training.weights import start_from_weights

_ERRORS = "training_errors"
# Larger matrices are unreadable as a plot, and W&B's tables are limited to 10,000 rows.
MATRIX_CLASSES, CONFUSED_PAIRS = 100, 200


class Classifier(TrainingModule):
    """``model`` [N, C, H, W] → logits [N, classes], trained with cross-entropy.

    ``optim.label_smoothing`` applies to training alone, so that validation losses stay comparable.
    """

    score = TOP1_ERROR

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__(model, config.optim, config.schedule, seed=config.seed)
        self.label_smoothing = config.optim.label_smoothing
        self.memory_format = torch.channels_last if config.trainer.channels_last else torch.contiguous_format
        self.training_errors, self.validation_errors = ErrorCount(), ErrorCount(confusion=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch, self.training_errors, label_smoothing=self.label_smoothing)
        self.nan_watch.add(loss.detach(), self.global_step + 1)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._loss(batch, self.validation_errors)

    def _loss(self, batch: tuple[Tensor, Tensor], errors: ErrorCount, *, label_smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        errors.add(logits.detach(), labels, loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:  # not called when training resumes within an epoch
        self.training_errors.reset()

    def on_validation_epoch_start(self) -> None:
        self.validation_errors.reset()
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self.metrics = {f"val/{name}": value for name, value in self.validation_errors.metrics(self.device).items()}
        if self.trainer.state.fn == "fit":
            training = self.training_errors.metrics(self.device)
            self.metrics |= {f"train/{name}": value for name, value in training.items()}
            self.metrics["lr"] = self.lr
            self.rate.observe(self.metrics)
        shown = {key: value for key, value in self.metrics.items() if key == "lr" or "error" in key or "loss" in key}
        self.log_dict(shown, prog_bar=False, logger=False)  # for custom callbacks; History writes to the loggers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[_ERRORS] = self.training_errors.totals(self.device)  # the checkpoint may be within an epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.global_rank == 0 and _ERRORS in checkpoint:  # sums over all ranks
            self.training_errors.restore(checkpoint[_ERRORS])


@dataclass(frozen=True)
class Confusion:
    """W&B charts of the confusion matrix of a validation (rows true, columns predicted)."""

    counts: Tensor
    classes: list[str]

    def to_wandb(self) -> dict[str, Any]:
        """A table of the most frequent confusions and, for up to 100 classes, the whole matrix."""
        import wandb

        pairs = wandb.Table(["class", "taken for", "images", "% of the class"], self._most_frequent())
        shown: dict[str, Any] = {CONFUSED: pairs}
        if len(self.classes) <= MATRIX_CLASSES:
            columns = ["Actual", "Predicted", "nPredictions"]
            counts = zip(product(self.classes, self.classes), self.counts.flatten().tolist(), strict=True)
            cells: list[Iterable[Any]] = [[*pair, images] for pair, images in counts]
            shown[CONFUSION] = wandb.plot_table(
                "wandb/confusion_matrix/v1",
                wandb.Table([*columns], cells),
                fields={column: column for column in columns},
                string_fields={"title": "confusion, last validation"},
            )
        return shown

    def _most_frequent(self) -> list[Iterable[Any]]:
        """True class, predicted class, images, percent of the true class."""
        wrong = self.counts.clone().fill_diagonal_(0)
        most = wrong.flatten().sort(descending=True, stable=True)
        class_sizes = self.counts.sum(dim=1).tolist()
        rows: list[Iterable[Any]] = []
        for images, index in zip(most.values[:CONFUSED_PAIRS].tolist(), most.indices.tolist(), strict=False):
            actual, predicted = divmod(index, len(self.classes))
            if images:
                share = 100 * images / class_sizes[actual]
                rows.append([self.classes[actual], self.classes[predicted], images, share])
        return rows


class Classification:
    """See ``Task``."""

    detects = False
    summary_metrics = ("val/top1_error", "val/top5_error", "val/loss")

    def data(self, config: TrainConfig) -> ImageData:
        data = ImageData(config.data, config.feed, batch_size=config.optim.batch_size, seed=config.seed)
        _ = data.training_images, data.evaluation_images
        return data

    def network(self, config: TrainConfig) -> nn.Module:
        network = network_of(config)
        if config.trainer.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def module(self, config: TrainConfig, data: ImageData, *, pretrained: bool = True) -> Classifier:
        network = self.network(config)
        if pretrained and config.weights is not None:
            start_from_weights(network, config)
        return Classifier(network, config)

    def result_fields(self, config: TrainConfig, module: Classifier) -> dict[str, Any]:
        shape = (config.data.channels, config.data.image_size, config.data.image_size)
        return {"complexity": count_complexity(module.model, shape).as_dict()}

    def final_charts(self, trainer: pl.Trainer, module: Classifier, data: ImageData, folder: Path) -> Confusion | None:
        classes = data.evaluation_images.classes
        counts = module.validation_errors.confusion(trainer.strategy.root_device, len(classes))
        return None if counts is None else Confusion(counts, classes)

    def describe(self, measured: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
        lines = []
        for name in ("top1", "top5"):
            record = f"recorded {recorded[f'val/{name}_error']:.2f} %" if recorded else "nothing recorded"
            wrong, images = measured[f"val/{name}_wrong"], measured["val/images"]
            error = f"{name[:3]}-{name[3]} error {measured[f'val/{name}_error']:.2f} %"
            lines.append(f"{error}  ({wrong} of {images} images)  {record}")
        return lines
