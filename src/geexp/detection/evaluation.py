"""COCO's twelve numbers, by pycocotools, the evaluator that defines them, so that they compare with the paper's.

torchmetrics' wrapper around it is not used: it holds boxes in float32 and orders images by rank, so where scores are
equal its numbers differ from pycocotools' and from one number of devices to another. The two minutes that pycocotools
takes on 40,504 images are negligible beside hours of training.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from geexp.detection.coco import CocoImages

NUMBERS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


@dataclass(frozen=True)
class DetectionScores:
    """The quality of detections.

    Attributes:
        numbers: the twelve that COCO defines, 0 … 1: AP over IoU 0.50 … 0.95, at 0.50 and 0.75, and for objects below
            32² pixels, up to 96² and above; AR with 1, 10 and 100 detections per image and by size. -1, as in COCO,
            where there is no object.
        recall: 0.00 … 1.00, ``[101]``.
        precision: by IoU 0.50 … 0.95, by recall and by class, ``[10, 101, K]``; -1 for a class without objects.
    """

    numbers: dict[str, float]
    classes: list[str]
    recall: np.ndarray
    precision: np.ndarray


class CocoEvaluator:
    """Collects the detections of a split over all ranks, each image exactly once, and compares them with the truth.

    Args:
        images: an evaluation split.
        whole: require every image of the split; otherwise the numbers refer to the images that were evaluated.
    """

    def __init__(self, images: CocoImages, *, whole: bool = True) -> None:
        self.images, self.whole = images, whole
        self.reset()

    def reset(self) -> None:
        # By image id: COCO's x, y, width, height, score and category, [n, 6]; None for an image that is left out.
        self._rows: dict[int, np.ndarray | None] = {}

    def add(self, image_ids: Sequence[int], detections: Sequence[dict[str, Tensor]]) -> None:
        """``boxes`` ``[n, 4]``, x1 y1 x2 y2 in the image's own pixels, ``labels`` and ``scores`` ``[n]``, per image.

        Raises:
            ValueError: for an image that was added before.
        """
        counts = [len(one["scores"]) for one in detections]
        columns = (
            # Of all images at once, since every copy waits for the device.
            torch.cat([one[key].detach() for one in detections]).cpu().split(counts)
            for key in ("boxes", "scores", "labels")
        )
        for image_id, boxes, scores, labels in zip(image_ids, *columns, strict=True):
            if image_id in self._rows:
                raise ValueError(f"image {image_id} is evaluated twice")
            x1, y1, x2, y2 = boxes.double().numpy().T
            categories = self.images.category_ids[labels.numpy() - 1]
            self._rows[image_id] = np.stack([x1, y1, x2 - x1, y2 - y1, scores.double().numpy(), categories], axis=1)

    def skip(self, image_ids: Sequence[int]) -> None:
        """Leave images out, with their objects."""
        self._rows |= dict.fromkeys(image_ids)

    def scores(self) -> DetectionScores:
        """Scores of the detections of all ranks. Every rank must call it; rank 0 computes.

        Raises:
            ValueError: unless each image of the split was added exactly once, or for a part of it at most once.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self._compute([self._rows])
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self._rows)
        outcome: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                outcome = [self._compute(parts)]
            except ValueError as error:  # which the other ranks, waiting for the outcome, raise as well
                outcome = [error]
        dist.broadcast_object_list(outcome)
        if isinstance(outcome[0], ValueError):
            raise outcome[0]
        return outcome[0]

    def _compute(self, parts: list[dict[int, np.ndarray | None]]) -> DetectionScores:
        self._require_once(np.array([image_id for part in parts for image_id in part], dtype=np.int64))
        # Sorted by image id: equal scores are ranked in their order, which must not depend on the number of ranks.
        everything = {image_id: mine for part in parts for image_id, mine in part.items()}
        rows = {image_id: mine for image_id, mine in sorted(everything.items()) if mine is not None}
        found = [np.insert(mine, 0, image_id, axis=1) for image_id, mine in rows.items() if len(mine)]
        with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            truth = COCO()
            truth.dataset = self.images.truth()
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(np.concatenate(found)) if found else COCO(), "bbox")
            evaluation.params.imgIds = list(rows)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # all sizes, 100 detections per image
        return DetectionScores(
            numbers=dict(zip(NUMBERS, map(float, evaluation.stats), strict=True)),
            classes=self.images.classes,
            recall=evaluation.params.recThrs,
            precision=precision,
        )

    def _require_once(self, evaluated: np.ndarray) -> None:
        split = np.sort(self.images.image_ids[self.images.indices])
        expected = split if self.whole else np.intersect1d(split, evaluated)
        if not np.array_equal(np.sort(evaluated), expected):
            raise ValueError(
                f"{len(evaluated)} images were evaluated in a split of {len(split)}: "
                f"{len(np.setdiff1d(split, evaluated))} are missing, "
                f"{len(evaluated) - len(np.unique(evaluated))} were evaluated twice and "
                f"{len(np.setdiff1d(evaluated, split))} belong to another split"
            )
