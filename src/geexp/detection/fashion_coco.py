"""A small detection set that needs no download: Fashion-MNIST items on textured backgrounds, in COCO's layout.

``annotations/instances_{train,val}.json`` and the folders ``train`` and ``val``. The splits take their items from
Fashion-MNIST's own splits. As in COCO, each box is the tight one around the visible pixels of its item.
"""

import json
import logging
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from geexp.config.errors import DataError
from geexp.config.process import PlainConsole
from geexp.detection.coco import CocoImages

log = logging.getLogger(__name__)

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_SPLITS = {"train": "train", "val": "test"}  # Fashion-MNIST's names
# Pixels of an item brighter than this (0 … 255) belong to it.
_THRESHOLD = 40
# An item that would cover more than this share of another one is moved elsewhere.
_MOST_COVERED = 0.4
_ATTEMPTS = 20


@dataclass(frozen=True)
class Recipe:
    """All that determines the pictures: images of ``size`` x ``size`` pixels with 1 to ``most_items`` items each,
    ``smallest`` to ``largest`` pixels wide before their empty border is cropped."""

    train: int = 800
    val: int = 200
    size: int = 128
    most_items: int = 5
    smallest: int = 28
    largest: int = 96
    seed: int = 0


def fashion_coco_mini(*, root: Path, split: str, train: bool, everything: bool = False) -> CocoImages:
    """One split of the set with the default recipe, made in ``root`` if it is not there; see ``CocoImages``."""
    make_fashion_coco(root)
    return CocoImages(root, split, train=train, everything=everything)


def make_fashion_coco(folder: Path, recipe: Recipe | None = None) -> bool:
    """Make the set in ``folder`` unless it is there; True if it was made.

    The bytes are the same in every run (with the same Pillow). It is written to a folder beside and then renamed, so
    several processes may do this at once.

    Raises:
        DataError: if ``folder`` holds something else, or a set of another recipe.
    """
    recipe = Recipe() if recipe is None else recipe
    if is_made(folder):
        _require_recipe(folder, recipe)
        return False
    log.info("making %s: %d + %d images of Fashion-MNIST items", folder, recipe.train, recipe.val)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".writing-{folder.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for split, n in (("train", recipe.train), ("val", recipe.val)):
            _make_split(unfinished, split, n, recipe)
        unfinished.rename(folder)
    except OSError as error:
        if not is_made(folder):  # otherwise another process was faster
            raise DataError(f"{folder}: the detection set cannot be made there: {error.strerror}.") from error
        _require_recipe(folder, recipe)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def is_made(folder: Path) -> bool:
    return all((folder / f"annotations/instances_{split}.json").is_file() for split in _SPLITS)


def _require_recipe(folder: Path, recipe: Recipe) -> None:
    try:
        made = json.loads((folder / "annotations/instances_val.json").read_text())["info"]["recipe"]
    except (ValueError, KeyError):
        made = "unknown"
    if made != asdict(recipe):
        raise DataError(
            f"{folder}: holds a set of another recipe ({made}, not {asdict(recipe)}). Remove it, or choose another "
            "folder."
        )


def _make_split(folder: Path, split: str, n: int, recipe: Recipe) -> None:
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    with files("geexp.data").joinpath("fashion_mnist_mini.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        items, labels = arrays[f"{_SPLITS[split]}_images"], arrays[f"{_SPLITS[split]}_labels"]
    random = np.random.default_rng([recipe.seed, list(_SPLITS).index(split)])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    console = PlainConsole(stderr=True)
    for image_id in track(
        range(1, n + 1), f"making {split}", console=console, transient=True, disable=not sys.stderr.isatty()
    ):
        name = f"{image_id:012d}.jpg"
        pixels, visible = _picture(random, items, labels, recipe)
        Image.fromarray(pixels).save(folder / split / name, quality=92)
        images.append({"id": image_id, "file_name": name, "width": recipe.size, "height": recipe.size})
        for label, mask in visible:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": _tight_box(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name, "supercategory": "fashion"} for label, name in enumerate(CLASSES)]
    about = {"description": "Fashion-MNIST's items on textured grounds, made by geexp", "recipe": asdict(recipe)}
    whole = {"info": about, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(whole))


def _picture(
    random: np.random.Generator, items: np.ndarray, labels: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """The picture ``uint8 [S, S, 3]``, and for each item its label and its visible pixels, ``bool [S, S]``."""
    canvas = _ground(random, recipe.size)
    visible: list[tuple[int, np.ndarray]] = []
    whole: list[int] = []  # pixels of each item before others covered it
    for _ in range(int(random.integers(1, recipe.most_items + 1))):
        which = int(random.integers(len(items)))
        colour = random.uniform(0.55, 1.0, 3)
        for _ in range(_ATTEMPTS):
            brightness = _placed(random, items[which], recipe)
            mask = brightness > _THRESHOLD
            kept = [
                (seen & ~mask).sum() >= (1 - _MOST_COVERED) * n for (_, seen), n in zip(visible, whole, strict=True)
            ]
            if mask.any() and all(kept):
                canvas = np.where(mask[..., None], brightness[..., None] * colour, canvas)
                visible = [(label, seen & ~mask) for label, seen in visible]
                visible.append((int(labels[which]), mask))
                whole.append(int(mask.sum()))
                break
    return canvas.round().clip(0, 255).astype(np.uint8), visible


def _placed(random: np.random.Generator, item: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The item, cropped to its content, at a random scale and position on black: float ``[S, S]``."""
    # Sizes are log-uniform.
    side = int(np.exp(random.uniform(np.log(recipe.smallest), np.log(recipe.largest + 1))))
    scaled = np.asarray(Image.fromarray(item).resize((side, side), Image.Resampling.BILINEAR), dtype=np.float64)
    rows, columns = (np.flatnonzero((scaled > _THRESHOLD).any(axis)) for axis in (1, 0))
    placed = np.zeros((recipe.size, recipe.size))
    if len(rows):
        content = scaled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = content.shape
        top, left = random.integers(recipe.size - height + 1), random.integers(recipe.size - width + 1)
        placed[top : top + height, left : left + width] = content
    return placed


def _ground(random: np.random.Generator, size: int) -> np.ndarray:
    """A textured background: noise of two grain sizes around a colour, float ``[S, S, 3]``."""
    ground = np.broadcast_to(random.uniform(40, 200, 3), (size, size, 3)).copy()
    for grain, strength in ((int(random.integers(4, 9)), 45), (int(random.integers(24, 49)), 25)):
        noise = Image.fromarray(random.integers(0, 256, (grain, grain, 3), dtype=np.uint8))
        smooth = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
        ground += (smooth / 127.5 - 1) * strength
    return ground.clip(0, 255)


def _tight_box(mask: np.ndarray) -> list[int]:
    """COCO's ``[x, y, width, height]`` in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
