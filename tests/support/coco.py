"""Small data sets in COCO's layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = {1: "person", 18: "dog", 90: "toothbrush"}


def annotation(number: int, image_id: int, category_id: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    about = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return {**about, "area": bbox[2] * bbox[3], "iscrowd": 0, **more}


def annotations(n: int = 4, size: tuple[int, int] = (60, 40)) -> dict[str, Any]:
    """``n`` images of (W, H) pixels with two objects each. As in COCO, ids are out of order and have gaps."""
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
        "categories": [{"id": i, "name": name} for i, name in reversed(CATEGORIES.items())],
    }


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The annotations after ``change``."""
    content = annotations()
    change(content)
    return content


def write_coco(root: Path, content: dict[str, Any], *splits: str) -> Path:
    """Write annotations and noise as images, for each split (train2014); returns ``root``."""
    for split in splits or ("train2014",):
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / split).mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            random = np.random.default_rng(image["id"])
            pixels = random.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / image["file_name"])
    return root
