"""Data sets in COCO's layout: ``annotations/instances_<split>.json`` and the images in ``<split>/``.

Annotations are held in arrays, which worker processes share; segmentations are dropped.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geexp.config.errors import DataError
from geexp.detection.annotations import read_annotations

log = logging.getLogger(__name__)

# What a split leaves out, beside the annotations that cannot be used.
NO_BOX, CROWDS, EMPTY_BOXES = "images without a box", "crowds", "boxes without an area"

_NOT_BELOW = re.compile(r"\w+://|[A-Za-z]:[\\/]|[\\/]")  # URLs and absolute paths, of Windows too


class CocoImages:
    """The images and boxes of one split.

    A training split has only the images with at least one box to learn from, an evaluation split has all. Boxes to
    learn from are clipped to the image, without crowds and boxes of no area; ``truth`` has all annotations as they are
    in the file, but those that cannot be used at all. What is left out is logged, and counted in ``left_out``.

    ``boxes`` is the number of boxes to learn from, ``clipped`` of those that end beyond their image.

    Labels are 1 … K in the order of the file's category ids, which have gaps in COCO (1 … 90 for 80 classes).

    Args:
        root: the folder with ``annotations`` and the split's folder.
        split: ``train2014``, ``val2017``, …
        everything: keep all images, also those without a box or without a file, to check them.

    Raises:
        DataError: for an annotation file that is missing, damaged or inconsistent, and for missing images.
    """

    def __init__(self, root: Path, split: str, *, train: bool, everything: bool = False) -> None:
        self.root, self.folder = root.absolute(), root.absolute() / split
        self.path = self.root / "annotations" / f"instances_{split}.json"
        self.annotations = read_annotations(self.path)
        self.classes, self.category_ids = self.annotations.classes, self.annotations.category_ids
        self.image_ids, self.notes = self.annotations.image_ids, list(self.annotations.notes)
        self._find_files(split)
        self._fill_in_sizes()
        self._clip()
        self._select(train, everything)
        if not everything:
            self._require_files()

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return str(self.root / self._paths[self.indices[index]])

    def is_there(self, index: int) -> bool:
        """Whether the file exists."""
        return bool(self._present[self.indices[index]])

    def image_id(self, index: int) -> int:
        return int(self.image_ids[self.indices[index]])

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) according to the annotations; (0, 0) if they have none and the file cannot be read."""
        height, width = self._sizes[self.indices[index]].tolist()
        return height, width

    def target(self, index: int) -> dict[str, Tensor]:
        """``boxes`` float32 ``[n, 4]``, x1 y1 x2 y2 in pixels, and ``labels`` int64 ``[n]``."""
        image = self.indices[index]
        objects = np.arange(self._starts[image], self._starts[image + 1])
        objects = objects[self._usable[objects]]
        return {
            "boxes": torch.from_numpy(self._corners[objects]),
            "labels": torch.from_numpy(self.annotations.labels[objects]),
        }

    def truth(self) -> dict[str, Any]:
        """All images and annotations that can be used, without segmentations, as pycocotools takes them.

        Annotations are renumbered from 1: pycocotools never matches one with the id 0, which a file may have.
        """
        found = self.annotations
        columns = (
            self.image_ids[found.owners],
            self.category_ids[found.labels - 1],
            found.bbox,
            found.area,
            found.crowd.astype(int),
        )
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        rows = enumerate(zip(*(column.tolist() for column in columns), strict=True), start=1)
        return {
            "images": [{"id": image_id} for image_id in self.image_ids.tolist()],
            "categories": [{"id": category} for category in self.category_ids.tolist()],
            "annotations": [dict(zip(keys, (number, *row), strict=True)) for number, row in rows],
        }

    def _find_files(self, split: str) -> None:
        """Set ``_paths``, below ``root``, and ``_present``.

        Names are relative to the split's folder, which they may repeat. A tool on Windows may have written backslashes,
        and a file system may have another Unicode normalisation than the annotations.
        """
        names = self.annotations.names
        outside = [name for name in names if _NOT_BELOW.match(name)]
        if outside:
            raise DataError(
                f"{self.path}: the file_name of {len(outside)} images is a URL or an absolute path, such as "
                f"{outside[0]}. Make it relative to {self.folder}, from where the images are read."
            )
        listings: dict[str, dict[str, str]] = {}

        def find(name: str) -> str | None:
            slashes = name.replace("\\", "/")
            for path in (name, slashes, f"/{slashes}".rpartition(f"/{split}/")[2].lstrip("/")):
                folder, file = os.path.split(os.path.join(split, path))
                if folder not in listings:
                    listings[folder] = _list_folder(self.root / folder)
                present = listings[folder].get(file) or listings[folder].get(normalize("NFC", file))
                if present:
                    return os.path.join(folder, present)
            return None

        found = [find(name) for name in names]
        self._present = np.array([path is not None for path in found], dtype=bool)
        self._paths = [path or os.path.join(split, name) for path, name in zip(found, names, strict=True)]

    def _fill_in_sizes(self) -> None:
        """Set ``_sizes``, read from the files where the annotations have none; (0, 0) if that fails, too."""
        self._sizes = self.annotations.sizes.copy()
        without = np.flatnonzero((self._sizes == 0).any(axis=1))
        if len(without):
            self._sizes[without] = [_size_of_file(self.root / self._paths[i]) for i in without]
            self.notes.append(f"images without width and height, read from the files: {len(without)}")

    def _clip(self) -> None:
        found = self.annotations
        # The objects of image i are starts[i] … starts[i + 1].
        self._starts = np.searchsorted(found.owners, np.arange(len(found.names) + 1))
        limits = self._sizes[found.owners][:, [1, 0, 1, 0]]
        limits = np.where(limits > 0, limits, np.inf)  # reading the image will fail and name it
        corners = np.concatenate([found.bbox[:, :2], found.bbox[:, :2] + found.bbox[:, 2:]], axis=1)
        self._corners = np.clip(corners, 0, limits).astype(np.float32)  # a sliver can lose its area by rounding
        self.clipped = int((self._corners != corners.astype(np.float32)).any(axis=1).sum())
        self._empty = ~(self._corners[:, 2:] > self._corners[:, :2]).all(axis=1)
        self._usable = ~self._empty & ~found.crowd
        self.boxes = int(self._usable.sum())

    def _select(self, train: bool, everything: bool) -> None:
        crowd = self.annotations.crowd
        has_box = np.bincount(self.annotations.owners[self._usable], minlength=len(self.image_ids)) > 0
        self.indices = np.flatnonzero(has_box) if train and not everything else np.arange(len(self.image_ids))
        self.left_out = {
            NO_BOX: int((~has_box).sum()) if train else 0,
            CROWDS: int(crowd.sum()),
            EMPTY_BOXES: int((self._empty & ~crowd).sum()),
            **self.annotations.left_out,
        }
        log.info(
            "%s: %d images, %d boxes of %d classes. Left out of training: %s; %d boxes clipped to their image.",
            self.path,
            len(self.indices),
            self.boxes,
            len(self.classes),
            ", ".join(f"{count} {what}" for what, count in self.left_out.items() if count) or "nothing",
            self.clipped,
        )
        if self.notes:
            log.warning("%s: %s.", self.path, "; ".join(self.notes))
        if not len(self.indices):
            raise DataError(f"{self.path}: no images{' with a box to learn from' if train else ''}.")

    def _require_files(self) -> None:
        missing = self.indices[~self._present[self.indices]]
        if len(missing):
            raise DataError(
                f"{len(missing)} of the {len(self.indices)} images in {self.path.name} are missing from {self.folder}, "
                f"such as {self.annotations.names[missing[0]]}. Complete the folder, or set data.root to where the "
                "data are; python -m geexp.check_data lists them all."
            )


def require_same_classes(train: CocoImages, evaluation: CocoImages) -> None:
    """Raise ``DataError`` unless a label means the same class in both."""
    ids = [dict(zip(one.category_ids.tolist(), one.classes, strict=True)) for one in (train, evaluation)]
    if ids[0] != ids[1]:
        only = [[f"{name} ({id_})" for id_, name in (mine.items() - other.items())] for mine, other in (ids, ids[::-1])]
        raise DataError(
            f"{train.path} and {evaluation.path} have different categories, so labels would not mean the same. Only "
            f"in the first, with their ids: {', '.join(only[0][:5]) or 'none'}; only in the second: "
            f"{', '.join(only[1][:5]) or 'none'}. List the same categories in both."
        )


def _list_folder(folder: Path) -> dict[str, str]:
    """The names in a folder, by themselves and by their composed Unicode form; empty if there is no such folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}.") from error
    return {normalize("NFC", name): name for name in names} | {name: name for name in names}


def _size_of_file(path: Path) -> tuple[int, int]:
    """(H, W) of the stored pixels, before any rotation by EXIF; (0, 0) if the file is no image."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0, 0
