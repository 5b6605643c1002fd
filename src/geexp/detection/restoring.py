"""A trained detector from its checkpoint: alone, or with the images that it is to be measured on."""

from pathlib import Path
from typing import Any

from torchvision.models.detection import FasterRCNN

from geexp.config.errors import ConfigError
from geexp.config.schema import EvaluateConfig, TrainConfig
from geexp.detection.data import DetectionData
from geexp.detection.evaluation import CocoEvaluator
from geexp.detection.learner import DetectionLearner
from geexp.detection.task import untrained_detector
from geexp.training.checkpoints import FORMAT, configuration_of, load_checkpoint
from geexp.training.evaluation import Trained, data_of, load_weights


def restore_detector(path: Path) -> tuple[FasterRCNN, TrainConfig, dict[str, Any]]:
    """The trained detector, the configuration of its run, and its checkpoint.

    Raises:
        DataError: for a file that is no checkpoint of ours, or one of another network than it says.
        ConfigError: for one of another network than a detector.
    """
    checkpoint = load_checkpoint(path)
    config = configuration_of(path, checkpoint[FORMAT])
    if not config.detects:
        raise ConfigError(f"{path} is of a run with detector=none, a classifier; python -m geexp.evaluate measures it.")
    detector = untrained_detector(config)
    weights = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    load_weights(detector, weights, path)
    return detector, config, checkpoint


def trained_detector(path: Path, settings: EvaluateConfig) -> Trained:
    """The detector of a checkpoint with the images that it is to be measured on.

    Raises:
        DataError, ConfigError: as ``restore_detector`` and ``data_of`` do.
    """
    detector, config, checkpoint = restore_detector(path)
    data_config, feed = data_of(config, root=settings.root, workers=settings.workers)
    data = DetectionData(data_config, feed, batch_size=config.optim.batch_size, seed=config.seed)
    evaluator = CocoEvaluator(data.evaluation_images)
    learner = DetectionLearner(detector, config.optim, config.schedule, seed=config.seed, evaluator=evaluator)
    return Trained(learner, data, config, checkpoint[FORMAT])
