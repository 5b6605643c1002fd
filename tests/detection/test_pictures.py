"""Pictures of detections, and precision-recall curves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geexp.config.errors import DataError
from geexp.config.schema import DetectConfig
from geexp.detection.evaluation import NUMBERS, DetectionScores
from geexp.detection.pictures import draw_detections, save_detections, save_precision_recall
from geexp.detection.predicting import chosen_images
from tests.support.configuration import train_config

CLASSES = ["person", "dog"]


def detection(*scores):
    boxes = torch.tensor([[10.0, 10.0, 40.0, 50.0]]).expand(len(scores), 4)
    return {"boxes": boxes, "labels": torch.arange(len(scores)) % 2 + 1, "scores": torch.tensor(scores)}


def test_a_folder_of_photos_has_hidden_files_and_folders(tmp_path):
    """As from a Mac or a notebook; they are passed over as in class folders."""
    for name in ("b.png", "a.JPG", "c.webp"):
        Image.new("RGB", (9, 9)).save(tmp_path / name, "PNG")
    for name in ("._a.JPG", ".b.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "folder.png").mkdir()
    settings, config = DetectConfig(images=str(tmp_path)), train_config()
    assert [Path(name).name for name in chosen_images(settings, config)] == ["a.JPG", "b.png", "c.webp"]
    settings.images = str(tmp_path / "folder.png")
    with pytest.raises(DataError, match=r"images=.*folder\.png: the folder has no \.jpg"):
        chosen_images(settings, config)


def test_boxes_above_the_least_score_are_drawn():
    image = torch.full((3, 64, 96), 90, dtype=torch.uint8)
    nothing = draw_detections(image, detection(0.1, 0.2), CLASSES)
    assert nothing.shape == (3, 256, 384)  # enlarged four times
    assert (nothing == 90).all()
    none = {"boxes": torch.empty(0, 4), "labels": torch.empty(0).long(), "scores": torch.empty(0)}
    assert torch.equal(draw_detections(image, none, CLASSES), nothing)
    one, both = (draw_detections(image, detection(0.9, 0.2), CLASSES, least_score=s) for s in (0.5, 0.1))
    assert (one != nothing).any()
    assert (both != one).any()


def test_large_images_keep_their_size():
    image = torch.zeros(3, 500, 700, dtype=torch.uint8)
    assert draw_detections(image, detection(0.9), CLASSES).shape == image.shape


def test_files(tmp_path):
    images = [torch.zeros(3, 400, 500, dtype=torch.uint8), torch.zeros(3, 480, 300, dtype=torch.uint8)]
    save_detections(tmp_path / "deep/found.png", images, [detection(0.9), detection(0.8, 0.7)], CLASSES, columns=2)
    assert Image.open(tmp_path / "deep/found.png").size == (2 * 500 + 3 * 2, 480 + 2 * 2)
    precision = np.stack([np.linspace(1, 0, 101)[None].repeat(10, 0), -np.ones((10, 101))], axis=2)
    scores = DetectionScores(
        numbers=dict.fromkeys(NUMBERS, 0.5),
        classes=["$5_$10", CLASSES[1]],  # not a formula
        recall=np.linspace(0, 1, 101),
        precision=precision,
    )
    save_precision_recall(tmp_path / "curves.svg", scores)
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    save_precision_recall(tmp_path / "curves.png", scores)
    assert Image.open(tmp_path / "curves.png").size[0] > 400
