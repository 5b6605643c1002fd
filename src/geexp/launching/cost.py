"""How much work a job is, from its configuration alone: to start the longest first, and to plan a month of GPU time."""

from geexp.config.protocol import stretched
from geexp.config.schema import TrainConfig

# The pyramid's box head: 7x7x256 → 1024 → 1024.
_TWO_LAYERS = (7 * 7 * 256 + 1024) * 1024 / 1e9


def images_to_see(config: TrainConfig) -> int:
    """Training images of all epochs together, at most: a plateau may end a schedule earlier."""
    schedule = stretched(config.schedule)
    if schedule.iterations is not None:
        return schedule.iterations * config.optim.batch_size
    return (config.trainer.max_epochs or schedule.epochs or 1) * images_of_an_epoch(config)


def images_of_an_epoch(config: TrainConfig) -> int:
    """Training images of the data set, or of the classes that are kept of it; one that states no number has none."""
    data = config.data
    images = data.training_images or 0
    if data.keep_classes is None or data.total_classes is None:
        return images
    return images * data.keep_classes // data.total_classes


def gmacs_of_an_image(config: TrainConfig) -> float:
    """Of the network's forward pass; GE itself, which adds less than one per cent, is left out."""
    model = config.model
    if model.gmacs is None:
        from geexp.training.network import count_run

        return count_run(config).total.macs / 1e9
    if config.detects:
        return _gmacs_of_a_detector(config, model.gmacs)
    return model.gmacs * (config.data.image_size / model.home_size) ** 2


def _gmacs_of_a_detector(config: TrainConfig, gmacs: float) -> float:
    """Of the backbone on an image of 4:3, as most of COCO's are, and of the box head on the regions of training.

    The region proposals and a pyramid's own convolutions are left out.
    """
    model, detector = config.model, config.detector
    pixels = detector.min_size * min(detector.max_size, detector.min_size * 4 / 3)
    scale = pixels / model.home_size**2
    if detector.layout == "fpn":
        return gmacs * scale + detector.regions * _TWO_LAYERS
    head = model.last_gmacs or 0.0  # at home on maps of a sixteenth of the image
    of_a_region = head * (16 * detector.roi_size / model.home_size) ** 2
    return (gmacs - head) * scale + detector.regions * of_a_region


def cost(config: TrainConfig) -> float:
    """GMACs of all forward passes on each of the job's devices."""
    return images_to_see(config) * gmacs_of_an_image(config) / (config.trainer.devices * config.trainer.nodes)
