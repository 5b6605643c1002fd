"""Small data sets in COCO's layout, well made or with something wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]


def annotation(number: int, image_id: int, category_id: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    area = bbox[2] * bbox[3]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
    } | more


def content(n: int = 4, size: tuple[int, int] = (60, 40)) -> dict[str, Any]:
    """Ids are out of order and have gaps, as COCO's; every image has two objects."""
    ids = [(100 - 7 * i) % 211 for i in range(n)]
    return {
        "images": [
            {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "width": size[0], "height": size[1]} for i in ids
        ],
        "annotations": [
            annotation(10 * place + which, i, category, [5.0 + place, 4.0, 20.0, 10.5 + which])
            for place, i in enumerate(ids)
            for which, category in enumerate((18, 90))
        ],
        "categories": [dict(category) for category in reversed(CATEGORIES)],
    }


def write(root: Path, made: dict[str, Any], split: str = "train2014") -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(made))
    for image in made["images"]:
        noise = np.random.default_rng(image["id"]).integers(
            0, 256, (image["height"], image["width"], 3), dtype=np.uint8
        )
        Image.fromarray(noise).save(root / split / image["file_name"])
    return root


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    made = content()
    change(made)
    return made
