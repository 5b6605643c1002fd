"""The Lightning module of detection: the detector's four losses, COCO's twelve numbers."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geexp.config.schema import OptimConfig, ScheduleConfig
from geexp.data.order import mix
from geexp.detection.batches import DetectionBatch
from geexp.detection.draws import fixed_draws
from geexp.detection.evaluation import CocoEvaluator, DetectionScores
from geexp.runs.metrics import AP
from geexp.training.learner import Learner

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
_SUMS = "detection_losses"
CLASSES = "classes"  # their names, in checkpoints


class DetectionLearner(Learner):
    """Trains a detector, which is judged by its mAP.

    Metrics are COCO's numbers in percent, ``val/AP`` … ``val/AR_large``, None where the images have no such object, and
    ``train/loss`` with its four parts. ``scores`` has the curves of the last validation.

    Args:
        evaluator: of the split that is shown in validations, all of it.
    """

    score = AP

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        *,
        seed: int,
        evaluator: CocoEvaluator,
    ) -> None:
        super().__init__(model, optim, schedule, seed=seed)
        self.evaluator = evaluator
        self.scores: DetectionScores | None = None
        self._sums: Tensor | None = None
        self._images = 0
        self._before = [0.0] * (1 + len(LOSSES))

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        drawn = mix(self.seed, "draws", self.current_epoch, batch_idx, self.global_rank)
        with fixed_draws(drawn, self.device):
            losses = self.model(batch.inputs(), batch.targets)
        parts = torch.stack([losses[name] for name in LOSSES])
        loss = parts.sum()
        self.loss_watch.add(loss.detach(), self.global_step + 1)
        sums = parts.detach().double() * len(batch)
        self._sums = sums if self._sums is None else self._sums + sums
        self._images += len(batch)
        return loss

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self.evaluator.add(batch.image_ids, self.model(batch.inputs()))

    def on_train_epoch_start(self) -> None:  # not when an epoch is entered in the middle
        self._forget()

    def on_validation_epoch_start(self) -> None:
        self.evaluator.reset()
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self.scores = self.evaluator.scores()
        numbers = self.scores.numbers.items()
        self.metrics = {f"val/{name}": None if value < 0 else 100 * value for name, value in numbers}
        if self.trainer.state.fn == "fit":
            images, *sums = self._totals()
            if images:
                parts = dict(zip(LOSSES, (value / images for value in sums), strict=True))
                self.metrics |= {f"train/{name}": value for name, value in parts.items()}
                self.metrics["train/loss"] = sum(parts.values())
            self.metrics["lr"] = self.lr

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[_SUMS] = self._totals()  # of an epoch that may be half done
        checkpoint[CLASSES] = self.evaluator.images.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.global_rank == 0 and _SUMS in checkpoint:  # the sums are of all ranks
            self._before = list(checkpoint[_SUMS])

    def _forget(self) -> None:
        self._sums, self._images, self._before = None, 0, [0.0] * (1 + len(LOSSES))

    def _totals(self) -> list[float]:
        """Images and summed losses of the epoch over all ranks, which must all ask."""
        totals = torch.tensor(self._before, dtype=torch.float64, device=self.device)
        totals[0] += self._images
        if self._sums is not None:
            totals[1:] += self._sums
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
        return totals.tolist()
