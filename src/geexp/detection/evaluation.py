"""COCO's twelve numbers, by pycocotools: the evaluator that defined them, so that they are comparable with the paper's.

It is maintained (wheels for every platform; Detectron2 and torchvision measure with it) and needs numpy alone. Faster
ones exist, agree with it, and judge it in the tests; its two minutes on 40,504 images are none of a training's hours.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from geexp.detection.coco import CocoImages

NUMBERS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


@dataclass(frozen=True)
class DetectionScores:
    """How good detections are.

    ``numbers`` are the twelve that COCO defines, 0 … 1: AP over IoU 0.50 … 0.95, at 0.50 and 0.75, of objects below
    32² pixels, up to 96² and above; AR with 1, 10 and 100 detections per image and by size. -1, as COCO has it, where
    there is no object at all. ``ap_by_class`` and ``ap50_by_class`` are of each class, None where it has no object.
    ``precision`` is ``[10, 101, K]``: by IoU 0.50 … 0.95, by ``recall`` 0.00 … 1.00, and by class; -1 likewise.
    """

    numbers: dict[str, float]
    classes: list[str]
    ap_by_class: dict[str, float | None]
    ap50_by_class: dict[str, float | None]
    recall: np.ndarray
    precision: np.ndarray


class CocoEvaluator:
    """Collects the detections of a split, each image's once, over all ranks; then compares them with the truth.

    Args:
        images: an evaluation split.
        whole: every image of it must be shown; otherwise the numbers are of those that are.
    """

    def __init__(self, images: CocoImages, *, whole: bool = True) -> None:
        self.images, self.whole = images, whole
        self.reset()

    def reset(self) -> None:
        self._rows: dict[int, np.ndarray] = {}

    def add(self, image_ids: Sequence[int], detections: Sequence[dict[str, Tensor]]) -> None:
        """``boxes`` ``[n, 4]``, x1 y1 x2 y2 in the image's own pixels, ``labels`` and ``scores`` ``[n]``, per image.

        Raises:
            ValueError: for an image that was shown before.
        """
        for image_id, one in zip(image_ids, detections, strict=True):
            if image_id in self._rows:
                raise ValueError(f"image {image_id} is evaluated twice")
            columns = [one["boxes"], one["scores"][:, None], one["labels"][:, None]]
            self._rows[image_id] = np.concatenate([c.detach().double().cpu().numpy() for c in columns], axis=1)

    def scores(self) -> DetectionScores:
        """Of the detections of all ranks, which must all ask; the first one computes.

        Raises:
            ValueError: unless every image of the split was shown exactly once, or of part of it none twice.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self._computed([self._rows])
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self._rows)
        outcome: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                outcome = [self._computed(parts)]
            except ValueError as error:  # the others wait for an answer
                outcome = [error]
        dist.broadcast_object_list(outcome)
        if isinstance(outcome[0], ValueError):
            raise outcome[0]
        return outcome[0]

    def _computed(self, parts: list[dict[int, np.ndarray]]) -> DetectionScores:
        shown = np.array([image_id for part in parts for image_id in part], dtype=np.int64)
        wanted = np.sort(self.images.image_ids[self.images.indices])
        expected = wanted if self.whole else np.intersect1d(wanted, shown)
        if not np.array_equal(np.sort(shown), expected):
            twice = len(shown) - len(np.unique(shown))
            missing = len(np.setdiff1d(wanted, shown))
            raise ValueError(
                f"{len(shown)} images were evaluated of a split of {len(wanted)}: {missing} are missing, {twice} came "
                f"twice and {len(np.setdiff1d(shown, wanted))} are of another split"
            )
        # In the order of their ids: equal scores are ranked as they come, whatever the number of ranks.
        rows = dict(sorted(item for part in parts for item in part.items()))
        with redirect_stdout(io.StringIO()):  # it reports progress where results go
            truth = self.images.truth()
            found = {**truth, "annotations": self._annotations(rows)}
            evaluation = COCOeval(_indexed(truth), _indexed(found), "bbox")
            evaluation.params.imgIds = list(rows)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # of all sizes, with 100 detections
        classes = self.images.classes
        return DetectionScores(
            numbers=dict(zip(NUMBERS, map(float, evaluation.stats), strict=True)),
            classes=classes,
            ap_by_class={name: _mean(precision[:, :, k]) for k, name in enumerate(classes)},
            ap50_by_class={name: _mean(precision[0, :, k]) for k, name in enumerate(classes)},
            recall=evaluation.params.recThrs,
            precision=precision,
        )

    def _annotations(self, rows: dict[int, np.ndarray]) -> list[dict[str, Any]]:
        annotations: list[dict[str, Any]] = []
        for image_id, mine in rows.items():
            x1, y1, x2, y2, scores, labels = mine.T
            categories = self.images.category_ids(labels.astype(np.int64))
            boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
            for box, score, category in zip(boxes.tolist(), scores.tolist(), categories.tolist(), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "score": score,
                        "iscrowd": 0,
                    }
                )
        return annotations


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _mean(precision: np.ndarray) -> float | None:
    """The mean over recalls, and IoUs if there are several; None without an object, which COCO says by -1."""
    return float(precision.mean()) if precision[precision > -1].size else None
