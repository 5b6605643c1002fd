"""Classification as a task: the network of the configuration, its images, errors counted exactly."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from geexp.backbones.complexity import count_complexity
from geexp.config.schema import TrainConfig
from geexp.data.module import ImageData
from geexp.training.classifier import Classifier
from geexp.training.network import network_of
from geexp.training.wandb_content import Confusion


class Classification:
    """See ``Task``."""

    def data(self, config: TrainConfig) -> ImageData:
        data = ImageData(config.data, config.feed, batch_size=config.optim.batch_size, seed=config.seed)
        _ = data.training_images, data.evaluation_images
        return data

    def module(self, config: TrainConfig) -> Classifier:
        model = network_of(config)
        if config.trainer.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.trainer.compile:
            model.compile(mode=config.trainer.compile_mode)  # in place: the names of its parameters stay
        return Classifier(
            model, config.optim, config.schedule, seed=config.seed, channels_last=config.trainer.channels_last
        )

    def facts(self, config: TrainConfig, module: Any) -> dict[str, Any]:
        shape = (config.data.channels, config.data.image_size, config.data.image_size)
        return {"complexity": count_complexity(module.model, shape).as_dict()}

    def ending(self, trainer: pl.Trainer, module: Classifier, data: ImageData, folder: Path) -> Confusion | None:
        """None if this process made no validation, as of a run that was resumed at its end."""
        classes = data.evaluation_images.classes
        counts = module.validation_errors.confusion(trainer.strategy.root_device, len(classes))
        return None if counts is None else Confusion(counts, classes)
