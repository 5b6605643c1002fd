"""COCO's own layout, ``annotations/instances_<split>.json`` and the images in ``<split>/``, checked when it is read.

The annotations are kept as arrays, which worker processes share; the segmentations are not kept.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geexp.config.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class CocoImages:
    """The images of a split and the objects on them.

    For training there are no images without a box to learn from; for evaluation there are all of them. Boxes to learn
    from are clipped to their image; crowds, and boxes without an area, are none. ``truth`` gives all of the file's, as
    the evaluation wants them. What was left out is logged.

    Labels are 1 … K in the order of the file's category ids, which have gaps in COCO (1 … 90 for 80 classes).

    Args:
        root: the folder that has ``annotations`` and the split's folder.
        split: ``train2014``, ``val2017``, …
        train: leave out the images that have nothing to learn from.
        num_classes: K as configured; None: whatever the file has.

    Raises:
        DataError: for an annotation file that is missing, incomplete or contradicts itself, and for missing images.
        ConfigError: if the file has another number of categories.
    """

    def __init__(self, root: Path, split: str, *, train: bool, num_classes: int | None = None) -> None:
        self.folder, self.split = root.absolute() / split, split
        self.path = root.absolute() / "annotations" / f"instances_{split}.json"
        content = _read_json(self.path)
        try:
            self._read(content)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            about = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{self.path}: not arranged as COCO's instance annotations are ({about}).") from error
        if num_classes is not None and num_classes != len(self.classes):
            raise ConfigError(
                f"data.num_classes={num_classes}: {self.path} has {len(self.classes)} categories "
                f"({', '.join(self.classes[:3])}, …)."
            )
        self._choose(train)
        self._require_files()

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return str(self.folder / self._names[self.indices[index]])

    def content(self, index: int) -> np.ndarray:
        return np.fromfile(self.name(index), dtype=np.uint8)

    def image_id(self, index: int) -> int:
        return int(self.image_ids[self.indices[index]])

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) as the annotations say."""
        height, width = self._sizes[self.indices[index]].tolist()
        return height, width

    def target(self, index: int) -> dict[str, Tensor]:
        """What there is to learn: ``boxes`` float32 ``[n, 4]``, x1 y1 x2 y2 in pixels, ``labels`` int64 ``[n]``."""
        image = self.indices[index]
        mine = slice(self._starts[image], self._starts[image + 1])
        usable = self._usable[mine]
        boxes = torch.from_numpy(self._corners[mine][usable])
        return {"boxes": boxes, "labels": torch.from_numpy(self._labels[mine][usable])}

    def category_ids(self, labels: np.ndarray) -> np.ndarray:
        """The file's ids of labels 1 … K."""
        return self._category_ids[labels - 1]

    def truth(self) -> dict[str, Any]:
        """All images and objects as the file has them, without segmentations, for pycocotools.

        Objects are numbered anew, from 1 on: one with the id 0, which a file may have, never matches there.
        """
        owners = self.image_ids[self._owners].tolist()
        categories = self.category_ids(self._labels).tolist()
        rows = zip(owners, categories, self._bbox.tolist(), self._area.tolist(), self._crowd.tolist(), strict=True)
        names = zip(self._category_ids.tolist(), self.classes, strict=True)
        return {
            "info": {},
            "images": [{"id": image_id} for image_id in self.image_ids.tolist()],
            "categories": [{"id": category, "name": name} for category, name in names],
            "annotations": [
                {"id": n, "image_id": owner, "category_id": category, "bbox": bbox, "area": area, "iscrowd": int(crowd)}
                for n, (owner, category, bbox, area, crowd) in enumerate(rows, start=1)
            ],
        }

    def _read(self, content: dict[str, Any]) -> None:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [str(category["name"]) for category in categories]
        self._category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
        images, objects = content["images"], content["annotations"]
        self._names = [str(image["file_name"]) for image in images]
        self._sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int32).reshape(-1, 2)
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        for what, ids in (("images", self.image_ids), ("categories", self._category_ids)):
            if len(np.unique(ids)) != len(ids):
                raise DataError(f"{self.path}: two of its {what} have the same id.")
        owners = self._places(self.image_ids, [o["image_id"] for o in objects], "image_id")
        labels = self._places(self._category_ids, [o["category_id"] for o in objects], "category_id") + 1
        bbox = np.array([o["bbox"] for o in objects], dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(bbox).all():
            raise DataError(f"{self.path}: a bbox has values that are no numbers.")
        area = np.array([o.get("area", o["bbox"][2] * o["bbox"][3]) for o in objects], dtype=np.float64)
        crowd = np.array([o.get("iscrowd", 0) for o in objects], dtype=bool)

        order = np.argsort(owners, kind="stable")
        self._owners, self._labels, self._bbox = owners[order], labels[order], bbox[order]
        self._area, self._crowd = area[order], crowd[order]
        self._starts = np.searchsorted(self._owners, np.arange(len(images) + 1))  # image i's are start i … start i+1
        limits = self._sizes[self._owners][:, [1, 0, 1, 0]]
        corners = np.concatenate([self._bbox[:, :2], self._bbox[:, :2] + self._bbox[:, 2:]], axis=1)
        self._corners = np.clip(corners, 0, limits).astype(np.float32)  # in which a sliver can lose its area
        self._clipped = int((self._corners != corners.astype(np.float32)).any(axis=1).sum())
        self._empty = ~(self._corners[:, 2:] > self._corners[:, :2]).all(axis=1)
        self._usable = ~self._empty & ~self._crowd

    def _places(self, ids: np.ndarray, wanted: list[int], what: str) -> np.ndarray:
        """Where in ``ids`` those wanted are."""
        places = {number: place for place, number in enumerate(ids.tolist())}
        strangers = [number for number in wanted if number not in places]
        if strangers:
            raise DataError(
                f"{self.path}: the {what} of {len(strangers)} annotations is not listed in the file; the first is "
                f"{strangers[0]}."
            )
        return np.array([places[number] for number in wanted], dtype=np.int64)

    def _choose(self, train: bool) -> None:
        has_box = np.bincount(self._owners[self._usable], minlength=len(self.image_ids)) > 0
        self.indices = np.flatnonzero(has_box) if train else np.arange(len(self.image_ids))
        self.left_out = {
            "images without a box": int((~has_box).sum()) if train else 0,
            "crowds": int(self._crowd.sum()),
            "boxes without an area": int((self._empty & ~self._crowd).sum()),
        }
        log.info(
            "%s: %d images, %d boxes of %d classes. Left out of training: %s; %d boxes were clipped to their image.",
            self.path,
            len(self.indices),
            int(self._usable.sum()),
            len(self.classes),
            ", ".join(f"{count} {what}" for what, count in self.left_out.items()),
            self._clipped,
        )
        if not len(self.indices):
            raise DataError(f"{self.path}: no image {'with a box to learn from' if train else 'at all'}.")

    def _require_files(self) -> None:
        present = {file.name for file in self.folder.iterdir()} if self.folder.is_dir() else set()
        missing = [self._names[i] for i in self.indices if self._names[i] not in present]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(self.indices)} images that {self.path.name} names are not in "
                f"{self.folder}, such as {missing[0]}. Complete the folder, or say where the data are with data.root."
            )


def require_same_classes(train: CocoImages, evaluation: CocoImages) -> None:
    """Raise ``DataError`` unless labels mean the same in both: an order of their own would shift them silently."""
    if (train.classes, train._category_ids.tolist()) != (evaluation.classes, evaluation._category_ids.tolist()):
        raise DataError(
            f"{train.path} and {evaluation.path} have different categories, so labels would not mean the same."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file. COCO's layout is annotations/instances_<split>.json and <split>/ with the "
            "images, below data.root."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:  # JSONDecodeError, and UnicodeDecodeError of what is no text
        raise DataError(f"{path}: no whole JSON file ({error}). Was it cut short? Fetch or make it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not arranged as COCO's instance annotations are (no object at the top).")
    return content
