"""Detection as a task: Faster R-CNN on the configuration's backbone, images with boxes, COCO's numbers."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torchvision.models.detection import FasterRCNN

from geexp.config.errors import ConfigError
from geexp.config.ranks import rank
from geexp.config.schema import TrainConfig
from geexp.detection.data import DetectionData
from geexp.detection.evaluation import CocoEvaluator
from geexp.detection.faster_rcnn import build_detector
from geexp.detection.learner import DetectionLearner
from geexp.detection.pictures import save_precision_recall
from geexp.detection.weights import load_backbone
from geexp.training.network import build_network

log = logging.getLogger(__name__)


class Detection:
    """See ``geexp.training.task.Task``."""

    def data(self, config: TrainConfig) -> DetectionData:
        self._data = DetectionData(config.data, config.feed, batch_size=config.optim.batch_size, seed=config.seed)
        return self._data

    def module(self, config: TrainConfig) -> DetectionLearner:
        detector = detector_of(config, with_weights=True)
        evaluator = CocoEvaluator(self._data.evaluation_images)
        return DetectionLearner(detector, config.optim, config.schedule, seed=config.seed, evaluator=evaluator)

    def complexity(self, config: TrainConfig, module: Any) -> dict[str, Any]:
        """Parameters; what a detector computes depends on its images, so it has no one number of MACs."""
        parameters = list(module.model.parameters())
        learnable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        return {"params": sum(parameter.numel() for parameter in parameters), "learnable": learnable, "macs": None}

    def ending(self, trainer: pl.Trainer, module: DetectionLearner, data: DetectionData, folder: Path) -> None:
        """The precision-recall curves of the last validation, as a picture in the run's folder."""
        if rank() == 0 and module.scores is not None:
            save_precision_recall(folder / "precision_recall.png", module.scores)
            log.info("precision and recall: %s", folder / "precision_recall.png")


def detector_of(config: TrainConfig, *, with_weights: bool) -> FasterRCNN:
    """The detector that a configuration describes; ``with_weights``: its backbone as training begins with it.

    Raises:
        ConfigError: for what the network refuses.
        DataError: for weights that do not fit.
    """
    backbone = build_network(config.model, config.ge, config.data)
    if with_weights:
        path = None if config.backbone_checkpoint is None else Path(config.backbone_checkpoint).expanduser()
        said = load_backbone(backbone, path)
        if rank() == 0:
            log.info("%s", said)
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
