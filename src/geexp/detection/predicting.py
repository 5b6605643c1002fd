"""What a trained detector finds in images, as numbers and as one picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geexp.config.errors import DataError
from geexp.config.schema import DetectConfig, TrainConfig
from geexp.data.decode import DAMAGED, Decoder
from geexp.detection.data import open_split
from geexp.detection.learner import CLASSES
from geexp.detection.pictures import save_detections
from geexp.detection.restoring import restore_detector
from geexp.runs.run_files import DETECTIONS
from geexp.training.evaluation import checkpoint_of

SUFFIXES = (".jpg", ".jpeg", ".png")


def draw_predictions(settings: DetectConfig) -> tuple[dict[str, list[dict[str, Any]]], Path]:
    """Run the detector of a run over images and save one picture of them.

    Returns:
        By image the objects, the surest first: ``class``, ``score`` and ``box`` (x1, y1, x2, y2 in pixels); and where
        the picture is.

    Raises:
        DataError: for a run without a checkpoint, and for files that are no images.
        ConfigError: for a run that is no detector's.
    """
    path = checkpoint_of(settings.run, settings.which)
    detector, config, checkpoint = restore_detector(path)
    classes = checkpoint[CLASSES]
    images = _images(settings, config)
    device = torch.device("cuda" if settings.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    detector.to(device).eval()
    found = []
    with torch.no_grad():
        for image in images.values():
            (one,) = detector([image.to(device).float() / 255])
            found.append({key: value.cpu() for key, value in one.items()})
    out = Path(settings.out).expanduser() if settings.out else path.parents[1] / DETECTIONS
    save_detections(out, list(images.values()), found, classes, least_score=settings.least_score)
    said = {
        name: [
            {"class": classes[label - 1], "score": score, "box": box}
            for box, label, score in zip(*(one[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
            if score >= settings.least_score
        ]
        for name, one in zip(images, found, strict=True)
    }
    return said, out


def _images(settings: DetectConfig, config: TrainConfig) -> dict[str, Tensor]:
    """``uint8 [3, H, W]`` by name."""
    if settings.images is None:
        data = config.data if settings.root is None else replace(config.data, root=settings.root)
        split = open_split(data, data.splits[1], train=False)
        names = [split.name(index) for index in range(min(settings.most, len(split)))]
    else:
        place = Path(settings.images).expanduser()
        if not place.exists():
            raise DataError(f"images={settings.images}: there is no such file or folder.")
        files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"images={settings.images}: no {', '.join(SUFFIXES)} files are there.")
        names = [str(file) for file in files[: settings.most]]
    decode = Decoder(config.feed.decode)
    images = {}
    for name in names:
        try:
            pixels = decode(np.fromfile(name, dtype=np.uint8))
        except DAMAGED as error:
            raise DataError(f"{name}: cannot be read as an image ({error}).") from error
        images[name] = pixels.permute(2, 0, 1).contiguous()
    return images
