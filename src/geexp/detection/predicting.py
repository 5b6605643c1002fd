"""The detections of a trained detector on images: as numbers and as one picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geexp.config.class_folders import SUFFIXES, is_there, list_folder
from geexp.config.errors import DataError
from geexp.config.schema import DetectConfig, TrainConfig
from geexp.data.decode import Decoder
from geexp.data.parallel import with_bar
from geexp.detection.data import open_split, read_image
from geexp.detection.pictures import save_detections
from geexp.detection.task import CLASSES, Detection
from geexp.runs.run_files import DETECTIONS
from geexp.training.evaluation import checkpoint_of, restore_network


def draw_predictions(settings: DetectConfig) -> tuple[dict[str, list[dict[str, Any]]], Path]:
    """Run the detector of a run over images and save one picture of them.

    Returns:
        For each image its objects, highest score first: ``class``, ``score`` and ``box`` (x1, y1, x2, y2 in pixels);
        and the path of the picture.

    Raises:
        DataError: for a run without a checkpoint, and for files that are no images.
        ConfigError: for a classifier's run.
    """
    path = checkpoint_of(settings.run, settings.which)
    detector, checkpoint = restore_network(Detection(), path)
    classes = checkpoint.content[CLASSES]
    images = chosen_images(settings, checkpoint.config)
    device = torch.device("cuda" if settings.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    detector.to(device).eval()
    detections = []
    with torch.no_grad():
        for image in with_bar(images.values(), "detecting"):
            (one,) = detector([image.to(device).float() / 255])
            detections.append({key: value.cpu() for key, value in one.items()})
    out = Path(settings.out) if settings.out else path.parents[1] / DETECTIONS
    save_detections(out, list(images.values()), detections, classes, least_score=settings.least_score)
    objects = {
        name: [
            {"class": classes[label - 1], "score": score, "box": box}
            for box, label, score in zip(*(one[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
            if score >= settings.least_score
        ]
        for name, one in zip(images, detections, strict=True)
    }
    return objects, out


def chosen_images(settings: DetectConfig, config: TrainConfig) -> dict[str, Tensor]:
    """``uint8 [3, H, W]`` by path."""
    if settings.images is None:
        data = config.data if settings.root is None else replace(config.data, root=settings.root)
        split = open_split(data, train=False)
        names = [split.name(index) for index in range(min(settings.most, len(split)))]
    else:
        place = Path(settings.images)
        if not is_there(place):
            raise DataError(f"images={settings.images}: no such file or folder.")
        files = [place] if place.is_file() else [place / name for name in list_folder(place).files]
        if not files:
            raise DataError(f"images={settings.images}: the folder has no {', '.join(SUFFIXES)} files.")
        names = [str(file) for file in files[: settings.most]]
    decode = Decoder(config.feed.decode)
    return {name: read_image(decode, name) for name in names}
