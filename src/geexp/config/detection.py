"""What a configuration of a detector must fulfil, and what its result depends on. No torch."""

import hashlib
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from geexp.config.catalog import BACKBONES, DETECTION_SETS
from geexp.config.errors import ConfigError, bad_value
from geexp.config.schema import TrainConfig

LAYOUTS = ("none", "c4", "fpn")


def is_detection(config: TrainConfig) -> bool:
    return config.detector.layout != "none"


def check_detection(config: TrainConfig) -> None:
    """The detector, and whether data, feed, backbone and GE are such as it can use.

    Raises:
        ConfigError: naming the key, and what to choose.
    """
    detector, data = config.detector, config.data
    if detector.layout not in LAYOUTS:
        raise bad_value("detector.layout", detector.layout, LAYOUTS)
    if not is_detection(config):
        if data.name in DETECTION_SETS:
            raise ConfigError(f"data={data.name} holds boxes, not one class an image: choose detector=c4 or fpn.")
        if config.backbone_checkpoint is not None:
            raise ConfigError("backbone_checkpoint is what a detector starts from; with detector=none leave it out.")
        return
    if data.name not in DETECTION_SETS:
        raise ConfigError(f"data={data.name} holds no boxes: a detector needs data={' or '.join(DETECTION_SETS)}.")
    if BACKBONES[config.model.name].module == "geexp.backbones.preact_resnet":
        raise ConfigError(
            f"model={config.model.name}: the stages of a pre-activation network end without BN and ReLU, so a detector "
            "cannot take regions from them. Choose resnet50, resnet101, resnet152, shufflenet_g3 or resnet10_slim."
        )
    if config.ge.variant in ("theta", "theta_plus") and config.ge.extent == "global":
        raise ConfigError(
            f"ge.extent=global: {config.ge.variant} gathers with a kernel as large as the feature map, and the images "
            "of a detector differ in size. Choose ge.extent=2, 4 or 8, or ge=theta_minus or ge=se, which pool."
        )
    if data.keep_classes is not None:
        raise ConfigError(f"data.keep_classes={data.keep_classes}: a detection set keeps all its classes.")
    if data.channels != 3:
        raise ConfigError(f"data.channels={data.channels}: a detector takes colour images, data.channels=3.")
    augmentation = data.augmentation
    if augmentation.crop is not None or augmentation.rotation or augmentation.jitter:
        raise ConfigError("data/augmentation: boxes can only be mirrored so far; choose mirror or none.")
    if config.trainer.overfit_batches:
        raise ConfigError(
            "trainer.overfit_batches: a detection set is read whole; trainer.limit_train_batches and limit_val_batches "
            "shorten the epochs."
        )
    if config.trainer.compile:
        raise ConfigError("trainer.compile=true: a detector's shapes change from image to image; leave it out.")
    for key in ("min_size", "roi_size", "candidates", "proposals", "candidates_at_test", "proposals_at_test"):
        if getattr(detector, key) < 1:
            raise ConfigError(f"detector.{key}={getattr(detector, key)}: must be at least 1.")
    if detector.max_size < detector.min_size:
        raise ConfigError(
            f"detector.max_size={detector.max_size}: is below detector.min_size={detector.min_size}, the shorter side."
        )
    if detector.anchor_sizes is not None and not (detector.anchor_sizes and min(detector.anchor_sizes) > 0):
        raise ConfigError(f"detector.anchor_sizes={detector.anchor_sizes}: a list of pixels, as in [64,128,256,512].")
    for key in ("anchors", "regions"):
        if getattr(detector, key) < 2:
            raise ConfigError(
                f"detector.{key}={getattr(detector, key)}: some must be objects and some not, at least 2."
            )
    if config.schedule.monitor != "val/loss" and config.schedule.kind == "plateau":
        raise ConfigError(f"schedule.monitor={config.schedule.monitor}: a detector has no such figure.")
    if config.schedule.kind == "plateau":
        raise ConfigError(
            f"schedule={config.schedule.name} waits for a loss of the evaluation images, which a detector "
            "does not compute; choose schedule=coco_faster_rcnn, or one of steps or a cosine."
        )


def detector_identity(config: TrainConfig) -> dict[str, Any]:
    """What makes a detector's result, beside what a classifier has, too: the weights to start from by their content."""
    return asdict(config.detector) | {"backbone": _fingerprint(config.backbone_checkpoint)}


def require_backbone(config: TrainConfig) -> None:
    """Raise ``ConfigError`` if the weights that a detector starts from are not there, or could be several."""
    if is_detection(config) and config.backbone_checkpoint is not None:
        backbone_file(config)


def backbone_file(config: TrainConfig) -> Path:
    """The file of ``backbone_checkpoint``, which may be a pattern (``*``) that fits one file only.

    Raises:
        ConfigError: if there is none, or more than one.
    """
    given = str(config.backbone_checkpoint)
    files = _files(given)
    if len(files) == 1:
        return files[0]
    if files:
        named = ", ".join(map(str, files))
        raise ConfigError(f"backbone_checkpoint={given}: fits {len(files)} files, {named}. Say which.")
    ge = f" ge={config.ge.variant}" + (f" ge.extent={config.ge.extent}" if config.ge.variant != "none" else "")
    raise ConfigError(
        f"backbone_checkpoint={given}: No such file. It is a classification run's checkpoint, "
        "<run>/checkpoints/last.ckpt, or a file of weights of torchvision or timm (.pth, .safetensors). Such a run is "
        f"trained by python -m geexp.train model={config.model.name}{ge} data=imagenet schedule=plateau"
    )


def _files(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if "*" not in given:
        return [path] if path.is_file() else []
    root = Path(path.anchor)
    return sorted(root.glob(str(path.relative_to(root))))


def _fingerprint(given: str | None) -> str:
    """Of a file of weights, wherever it lies: the start of its SHA-256. A plan can be made before it is there."""
    if given is None:
        return "nothing"
    files = _files(given)
    if len(files) != 1:
        return "missing"
    status = files[0].stat()
    return _digest(files[0], status.st_mtime_ns, status.st_size)


@lru_cache
def _digest(path: Path, changed: int, size: int) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"backbone_checkpoint={path}: {error.strerror}.") from error
