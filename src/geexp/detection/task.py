"""Detection as a task: Faster R-CNN on the configuration's backbone, images with boxes, COCO's numbers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from geexp.config.errors import ConfigError
from geexp.config.ranks import rank
from geexp.config.schema import OptimConfig, ScheduleConfig, TrainConfig
from geexp.data.order import mix
from geexp.detection.data import DetectionBatch, DetectionData
from geexp.detection.evaluation import CocoEvaluator, DetectionScores
from geexp.detection.faster_rcnn import build_detector
from geexp.detection.pictures import save_precision_recall
from geexp.detection.weights import load_backbone
from geexp.runs.job import digest_of_weights, make_job, weights_file
from geexp.runs.metrics import AP, coco_numbers
from geexp.runs.run_files import PRECISION_RECALL
from geexp.training.network import network_of
from geexp.training.task import TrainingModule
from geexp.training.weights import Loaded

log = logging.getLogger(__name__)

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
CLASSES = "classes"  # their names, in checkpoints
_SUMS = "detection_losses"


class Detector(TrainingModule):
    """Trains a detector; its score is mAP.

    Metrics are COCO's numbers in percent, ``val/AP`` … ``val/AR_large``, None where the images have no such object, and
    ``train/loss`` with its four parts. ``scores`` has the curves of the last validation.

    Args:
        evaluator: of the split that validations show.
        loaded: the weights that the backbone started from; None for a detector that is evaluated or resumed.
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
        loaded: Loaded | None = None,
    ) -> None:
        super().__init__(model, optim, schedule, seed=seed)
        self.evaluator, self.loaded = evaluator, loaded
        self.scores: DetectionScores | None = None
        self._sums = torch.zeros(1 + len(LOSSES), dtype=torch.float64)  # this rank's images in the epoch, their losses

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        with fixed_draws(mix(self.seed, "draws", self.current_epoch, batch_idx, self.global_rank), self.device):
            losses = self.model(batch.inputs(), batch.targets)
        parts = torch.stack([losses[name] for name in LOSSES])
        loss = parts.sum()
        self.nan_watch.add(loss.detach(), self.global_step + 1)
        self._sums = self._sums.to(self.device)
        self._sums += torch.cat([parts.new_ones(1), parts.detach()]).double() * len(batch.images)
        return loss

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        if batch.images:
            self.evaluator.add(batch.image_ids, self.model(batch.inputs()))
        self.evaluator.skip(batch.skipped_ids)

    def on_train_epoch_start(self) -> None:  # not called when an epoch is resumed in the middle
        self._sums.zero_()

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
        checkpoint[_SUMS] = self._totals()  # of an epoch that may be unfinished
        checkpoint[CLASSES] = self.evaluator.images.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.global_rank == 0 and _SUMS in checkpoint:  # the sums are over all ranks
            self._sums = torch.tensor(checkpoint[_SUMS], dtype=torch.float64)

    def _totals(self) -> list[float]:
        """The epoch's images and summed losses over all ranks. Every rank must call it."""
        totals = self._sums.to(self.device, copy=True)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
        return totals.tolist()


@dataclass(frozen=True)
class PrecisionRecall:
    """The precision-recall curves in the run's folder; see ``geexp.training.task.Charts``."""

    path: Path

    def to_wandb(self) -> dict[str, Any]:
        import wandb

        return {self.path.stem: wandb.Image(str(self.path))}


class Detection:
    """See ``geexp.training.task.Task``."""

    detects = True
    summary_metrics: tuple[str, ...] = ("val/AP", "val/AP50")

    def data(self, config: TrainConfig) -> DetectionData:
        return DetectionData(config.data, config.feed, batch_size=config.optim.batch_size, seed=config.seed)

    def network(self, config: TrainConfig) -> FasterRCNN:
        return _detector(config, network_of(config))

    def module(self, config: TrainConfig, data: DetectionData, *, pretrained: bool = True) -> Detector:
        backbone, loaded = network_of(config), None
        if pretrained:
            loaded = load_backbone(backbone, weights_file(config))
            if rank() == 0:
                log.info("%s", loaded.description)
        evaluator = CocoEvaluator(data.evaluation_images, whole=config.trainer.limit_val_batches is None)
        return Detector(
            _detector(config, backbone),
            config.optim,
            config.schedule,
            seed=config.seed,
            evaluator=evaluator,
            loaded=loaded,
        )

    def result_fields(self, config: TrainConfig, module: Detector) -> dict[str, Any]:
        """``complexity``, without MACs, which vary with the images; and ``backbone``, the weights it started from, with
        the identity of their run if they are of a run of ours."""
        loaded = module.loaded or load_backbone(network_of(config), weights_file(config))  # after resuming
        parameters = list(module.model.parameters())
        learnable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in parameters)
        run = None if loaded.run is None else make_job(loaded.run).identity
        file = digest_of_weights(config)
        return {
            "complexity": {"params": total, "learnable": learnable, "macs": None},
            "backbone": {"file": file, "loaded": loaded.description, "identity": run},
        }

    def final_charts(
        self, trainer: pl.Trainer, module: Detector, data: DetectionData, folder: Path
    ) -> PrecisionRecall | None:
        if rank() != 0 or module.scores is None:
            return None
        charts = PrecisionRecall(folder / PRECISION_RECALL)
        save_precision_recall(charts.path, module.scores)
        log.info("precision and recall: %s", charts.path)
        return charts

    def describe(self, measured: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
        then = dict(coco_numbers(recorded))
        return [
            f"  {name:<10} {now}  {f'recorded {then[name]}' if recorded else 'nothing recorded'}"
            for name, now in coco_numbers(measured)
        ]


@contextmanager
def fixed_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Within, the default generators of the CPU and the device start from ``seed``; afterwards they are as before.

    torchvision samples a step's anchors and regions from them: without a seed of its own, a resumed step would differ.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _detector(config: TrainConfig, backbone: nn.Module) -> FasterRCNN:
    settings = config.detector
    try:
        return build_detector(
            backbone,
            num_classes=config.data.num_classes,
            layout=settings.layout,
            min_size=settings.min_size,
            max_size=settings.max_size,
            anchor_sizes=settings.anchor_sizes,
            roi_size=settings.roi_size,
            freeze_bn=settings.freeze_bn,
            regions=settings.regions,
            box_beta=settings.box_beta,
            nms_at_test=settings.nms_at_test,
            image_mean=config.data.mean,
            image_std=config.data.std,
            rpn_pre_nms_top_n_train=settings.candidates,
            rpn_post_nms_top_n_train=settings.proposals,
            rpn_pre_nms_top_n_test=settings.candidates_at_test,
            rpn_post_nms_top_n_test=settings.proposals_at_test,
            rpn_batch_size_per_image=settings.anchors,
        )
    except ValueError as error:
        raise ConfigError(f"detector={settings.layout} model={config.model.name}: {str(error).rstrip('.')}.") from error
