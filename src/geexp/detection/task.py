"""Detection as a task: Faster R-CNN on the configuration's backbone, images with boxes, COCO's numbers."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torchvision.models.detection import FasterRCNN

from geexp.config.errors import ConfigError
from geexp.config.ranks import rank
from geexp.config.schema import TrainConfig
from geexp.detection.data import DetectionData
from geexp.detection.evaluation import CocoEvaluator
from geexp.detection.faster_rcnn import build_detector
from geexp.detection.learner import DetectionLearner
from geexp.detection.pictures import save_precision_recall
from geexp.detection.weights import Loaded, load_backbone
from geexp.runs.job import make_job
from geexp.runs.run_files import PRECISION_RECALL
from geexp.runs.weights_file import backbone_file, digest_of_weights
from geexp.training.network import network_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """See ``geexp.training.task.Ending``."""

    path: Path

    def charts(self) -> dict[str, Any]:
        import wandb

        return {self.path.stem: wandb.Image(str(self.path))}


class Detection:
    """See ``geexp.training.task.Task``."""

    def data(self, config: TrainConfig) -> DetectionData:
        self._data = DetectionData(config.data, config.feed, batch_size=config.optim.batch_size, seed=config.seed)
        return self._data

    def module(self, config: TrainConfig) -> DetectionLearner:
        detector, self._loaded = detector_to_train(config)
        whole = config.trainer.limit_val_batches is None
        evaluator = CocoEvaluator(self._data.evaluation_images, whole=whole)
        return DetectionLearner(detector, config.optim, config.schedule, seed=config.seed, evaluator=evaluator)

    def facts(self, config: TrainConfig, module: Any) -> dict[str, Any]:
        """Parameters; what a detector computes depends on its images, so it has no one number of MACs.

        And what its backbone started from: of a run of ours the identity.
        """
        parameters = list(module.model.parameters())
        learnable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in parameters)
        run = None if self._loaded.run is None else make_job(self._loaded.run).identity
        file = digest_of_weights(config.backbone_checkpoint)
        return {
            "complexity": {"params": total, "learnable": learnable, "macs": None},
            "backbone": {"file": file, "loaded": self._loaded.said, "identity": run},
        }

    def ending(
        self, trainer: pl.Trainer, module: DetectionLearner, data: DetectionData, folder: Path
    ) -> Picture | None:
        """The precision-recall curves of the last validation, as a picture in the run's folder."""
        if rank() != 0 or module.scores is None:
            return None
        picture = Picture(folder / PRECISION_RECALL)
        save_precision_recall(picture.path, module.scores)
        log.info("precision and recall: %s", picture.path)
        return picture


def detector_to_train(config: TrainConfig) -> tuple[FasterRCNN, Loaded]:
    """The detector that a configuration describes, its backbone as training begins with it; and what that was.

    Raises:
        ConfigError: for what the network refuses, and weights that are not there.
        DataError: for weights that do not fit.
    """
    backbone = network_of(config)
    loaded = load_backbone(backbone, None if config.backbone_checkpoint is None else backbone_file(config))
    if rank() == 0:
        log.info("%s", loaded.said)
    return _detector(config, backbone), loaded


def untrained_detector(config: TrainConfig) -> FasterRCNN:
    """The detector that a configuration describes, to load its weights into.

    Raises:
        ConfigError: for what the network refuses.
    """
    return _detector(config, network_of(config))


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
            image_mean=config.data.mean,
            image_std=config.data.std,
            rpn_pre_nms_top_n_train=settings.candidates,
            rpn_post_nms_top_n_train=settings.proposals,
            rpn_pre_nms_top_n_test=settings.candidates_at_test,
            rpn_post_nms_top_n_test=settings.proposals_at_test,
            rpn_batch_size_per_image=settings.anchors,
            box_batch_size_per_image=settings.regions,
        )
    except ValueError as error:
        raise ConfigError(f"detector={settings.layout} model={config.model.name}: {str(error).rstrip('.')}.") from error
