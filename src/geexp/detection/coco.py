"""Data sets in COCO's layout: ``annotations/instances_<split>.json`` and the images in ``<split>/``.

Annotations are held in arrays, which worker processes share; segmentations are dropped.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geexp.config.errors import DataError

log = logging.getLogger(__name__)


class CocoImages:
    """The images and boxes of one split.

    A training split has only the images with at least one box to learn from, an evaluation split has all. Boxes to
    learn from are clipped to the image, without crowds and boxes of no area; ``truth`` has all annotations as they are
    in the file. What is left out is logged, and counted in ``left_out``.

    Labels are 1 … K in the order of the file's category ids, which have gaps in COCO (1 … 90 for 80 classes).

    Args:
        root: the folder with ``annotations`` and the split's folder.
        split: ``train2014``, ``val2017``, …

    Raises:
        DataError: for an annotation file that is missing, incomplete or inconsistent, and for missing images.
    """

    def __init__(self, root: Path, split: str, *, train: bool) -> None:
        self.folder = root.absolute() / split
        self.path = root.absolute() / "annotations" / f"instances_{split}.json"
        content = _read_json(self.path)
        try:
            self._parse(content)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{self.path}: not in the format of COCO's instance annotations ({reason}).") from error
        self._select(train)
        self._require_files()

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return str(self.folder / self._names[self.indices[index]])

    def image_id(self, index: int) -> int:
        return int(self.image_ids[self.indices[index]])

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) according to the annotations."""
        height, width = self._sizes[self.indices[index]].tolist()
        return height, width

    def target(self, index: int) -> dict[str, Tensor]:
        """``boxes`` float32 ``[n, 4]``, x1 y1 x2 y2 in pixels, and ``labels`` int64 ``[n]``."""
        image = self.indices[index]
        objects = np.arange(self._starts[image], self._starts[image + 1])
        objects = objects[self._usable[objects]]
        return {"boxes": torch.from_numpy(self._corners[objects]), "labels": torch.from_numpy(self._labels[objects])}

    def truth(self) -> dict[str, Any]:
        """All images and annotations of the file, without segmentations, as pycocotools takes them.

        Annotations are renumbered from 1: pycocotools never matches one with the id 0, which a file may have.
        """
        columns = (
            self.image_ids[self._owners],
            self.category_ids[self._labels - 1],
            self._bbox,
            self._area,
            self._crowd.astype(int),
        )
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        rows = enumerate(zip(*(column.tolist() for column in columns), strict=True), start=1)
        return {
            "images": [{"id": image_id} for image_id in self.image_ids.tolist()],
            "categories": [{"id": category} for category in self.category_ids.tolist()],
            "annotations": [dict(zip(keys, (number, *row), strict=True)) for number, row in rows],
        }

    def _parse(self, content: dict[str, Any]) -> None:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [str(category["name"]) for category in categories]
        self.category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
        images, objects = content["images"], content["annotations"]
        self._names = [str(image["file_name"]) for image in images]
        self._sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int32).reshape(-1, 2)
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        for what, ids in (("images", self.image_ids), ("categories", self.category_ids)):
            if len(np.unique(ids)) != len(ids):
                raise DataError(f"{self.path}: two {what} have the same id.")
        owners = self._positions(self.image_ids, [o["image_id"] for o in objects], "image_id")
        labels = self._positions(self.category_ids, [o["category_id"] for o in objects], "category_id") + 1
        bbox = np.array([o["bbox"] for o in objects], dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(bbox).all():
            raise DataError(f"{self.path}: a bbox has values that are NaN or infinite.")
        area = np.array([o.get("area", o["bbox"][2] * o["bbox"][3]) for o in objects], dtype=np.float64)
        crowd = np.array([o.get("iscrowd", 0) for o in objects], dtype=bool)

        order = np.argsort(owners, kind="stable")
        self._owners, self._labels, self._bbox = owners[order], labels[order], bbox[order]
        self._area, self._crowd = area[order], crowd[order]
        # The objects of image i are starts[i] … starts[i + 1].
        self._starts = np.searchsorted(self._owners, np.arange(len(images) + 1))
        limits = self._sizes[self._owners][:, [1, 0, 1, 0]]
        corners = np.concatenate([self._bbox[:, :2], self._bbox[:, :2] + self._bbox[:, 2:]], axis=1)
        self._corners = np.clip(corners, 0, limits).astype(np.float32)  # a sliver can lose its area by rounding
        self._clipped = int((self._corners != corners.astype(np.float32)).any(axis=1).sum())
        self._empty = ~(self._corners[:, 2:] > self._corners[:, :2]).all(axis=1)
        self._usable = ~self._empty & ~self._crowd

    def _positions(self, ids: np.ndarray, wanted: list[int], key: str) -> np.ndarray:
        """The index in ``ids`` of each wanted one."""
        positions = {number: position for position, number in enumerate(ids.tolist())}
        unknown = [number for number in wanted if number not in positions]
        if unknown:
            raise DataError(
                f"{self.path}: the {key} of {len(unknown)} annotations is not listed in the file, such as {unknown[0]}."
            )
        return np.array([positions[number] for number in wanted], dtype=np.int64)

    def _select(self, train: bool) -> None:
        has_box = np.bincount(self._owners[self._usable], minlength=len(self.image_ids)) > 0
        self.indices = np.flatnonzero(has_box) if train else np.arange(len(self.image_ids))
        self.left_out = {
            "images without a box": int((~has_box).sum()) if train else 0,
            "crowds": int(self._crowd.sum()),
            "boxes without an area": int((self._empty & ~self._crowd).sum()),
        }
        log.info(
            "%s: %d images, %d boxes of %d classes. Left out of training: %s; %d boxes clipped to their image.",
            self.path,
            len(self.indices),
            int(self._usable.sum()),
            len(self.classes),
            ", ".join(f"{count} {what}" for what, count in self.left_out.items()),
            self._clipped,
        )
        if not len(self.indices):
            raise DataError(f"{self.path}: no images{' with a box to learn from' if train else ''}.")

    def _require_files(self) -> None:
        present = {file.name for file in self.folder.iterdir()} if self.folder.is_dir() else set()
        missing = [self._names[i] for i in self.indices if self._names[i] not in present]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(self.indices)} images in {self.path.name} are missing from {self.folder}, "
                f"such as {missing[0]}. Complete the folder, or set data.root to where the data are."
            )


def require_same_classes(train: CocoImages, evaluation: CocoImages) -> None:
    """Raise ``DataError`` unless a label means the same class in both."""
    if (train.classes, train.category_ids.tolist()) != (evaluation.classes, evaluation.category_ids.tolist()):
        raise DataError(
            f"{train.path} and {evaluation.path} have different categories, so labels would not mean the same."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file. COCO's layout below data.root is annotations/instances_<split>.json and the images "
            "in <split>/."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:  # JSONDecodeError, or UnicodeDecodeError for binary content
        raise DataError(f"{path}: not a complete JSON file ({error}). If it was cut short, fetch it again.") from error
