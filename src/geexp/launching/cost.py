"""How much work a job is, from its configuration alone: to start the longest first, and to plan a month of GPU time."""

from geexp.config.catalog import BACKBONES, TRAINING_IMAGES
from geexp.config.protocol import stretched
from geexp.config.schema import TrainConfig

_CLASSES = {"imagenet": 1000, "cifar100": 100}  # the others have ten


def images_to_see(config: TrainConfig) -> int:
    """Training images of all epochs together, at most: a plateau may end a schedule earlier."""
    schedule = stretched(config.schedule)
    if schedule.iterations is not None:
        return schedule.iterations * config.optim.batch_size
    return (config.trainer.max_epochs or schedule.epochs or 1) * images_of_an_epoch(config)


def images_of_an_epoch(config: TrainConfig) -> int:
    images = TRAINING_IMAGES[config.data.name]
    if config.data.keep_classes is None:
        return images
    return images * config.data.num_classes // _CLASSES.get(config.data.name, 10)


def gmacs_of_an_image(config: TrainConfig) -> float:
    """Of the backbone's forward pass; GE itself, which adds less than one per cent, is left out."""
    backbone = BACKBONES[config.model.name]
    return backbone.gmacs * (config.data.image_size / backbone.image_size) ** 2


def cost(config: TrainConfig) -> float:
    """GMACs of all forward passes on each of the job's devices."""
    return images_to_see(config) * gmacs_of_an_image(config) / (config.trainer.devices * config.trainer.nodes)
