"""How much work a job is, from its configuration alone: to start the longest first, and to plan a month of GPU time."""

from geexp.config.catalog import BACKBONES, TRAINING_IMAGES
from geexp.config.detection import is_detection
from geexp.config.protocol import stretched
from geexp.config.schema import TrainConfig

# The pyramid's box head: 7x7x256 → 1024 → 1024.
_TWO_LAYERS = (7 * 7 * 256 + 1024) * 1024 / 1e9
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
    """Of the network's forward pass; GE itself, which adds less than one per cent, is left out."""
    if is_detection(config):
        return _gmacs_of_a_detector(config)
    backbone = BACKBONES[config.model.name]
    return backbone.gmacs * (config.data.image_size / backbone.image_size) ** 2


def _gmacs_of_a_detector(config: TrainConfig) -> float:
    """Of the backbone on an image of 4:3, as most of COCO's are, and of the box head on the regions of training.

    The region proposals and a pyramid's own convolutions are left out.
    """
    backbone, detector = BACKBONES[config.model.name], config.detector
    pixels = detector.min_size * min(detector.max_size, detector.min_size * 4 / 3)
    scale = pixels / backbone.image_size**2
    if detector.layout == "fpn":
        return backbone.gmacs * scale + detector.regions * _TWO_LAYERS
    head = backbone.last_gmacs or 0.0  # at home on maps of a sixteenth of the image
    of_a_region = head * (16 * detector.roi_size / backbone.image_size) ** 2
    return (backbone.gmacs - head) * scale + detector.regions * of_a_region


def cost(config: TrainConfig) -> float:
    """GMACs of all forward passes on each of the job's devices."""
    return images_to_see(config) * gmacs_of_an_image(config) / (config.trainer.devices * config.trainer.nodes)
