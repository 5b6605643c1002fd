"""Pictures of detections, and precision-recall curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.font_manager import findfont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid, save_image

from geexp.detection.evaluation import DetectionScores

# Okabe & Ito's palette, distinguishable with colour blindness; classes take its colours in turn.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF")
# Smaller images are enlarged to about this side, so that names can be read.
_SIDE = 384


def draw_detections(
    image: Tensor, detection: dict[str, Tensor], classes: Sequence[str], *, least_score: float = 0.3
) -> Tensor:
    """Draw boxes with names and scores on an image ``uint8 [3, H, W]``, a small one enlarged by a whole factor.

    Args:
        detection: ``boxes``, ``labels`` from 1 on and ``scores``, best first.
    """
    times = max(1, round(_SIDE / max(image.shape[1:])))
    canvas = F.interpolate(image[None].cpu(), scale_factor=times, mode="nearest")[0]
    shown = (detection["scores"] >= least_score).nonzero()[:, 0].flip(0)  # the best last, on top
    if not len(shown):
        return canvas
    boxes, labels, scores = (detection[key][shown].tolist() for key in ("boxes", "labels", "scores"))
    return draw_bounding_boxes(
        canvas,
        times * torch.tensor(boxes),
        [f"{classes[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)],
        [_COLOURS[(label - 1) % len(_COLOURS)] for label in labels],
        width=2,
        font=findfont("DejaVu Sans"),  # shipped with matplotlib
        font_size=13,
        label_colors="black",
        fill_labels=True,
    )


def save_detections(
    path: Path,
    images: Sequence[Tensor],
    detections: Sequence[dict[str, Tensor]],
    classes: Sequence[str],
    *,
    least_score: float = 0.3,
    columns: int = 4,
) -> None:
    """Save several images with their detections as one picture, on tiles of the size of the largest."""
    drawn = [
        draw_detections(image, detection, classes, least_score=least_score)
        for image, detection in zip(images, detections, strict=True)
    ]
    height, width = (max(one.shape[side] for one in drawn) for side in (1, 2))
    tiles = torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in drawn])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(make_grid(tiles, nrow=columns).float() / 255, path)


def save_precision_recall(path: Path, scores: DetectionScores) -> None:
    """Plot a panel per class: precision against recall at IoU 0.50 and 0.75, titled with the AP over all IoUs."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    from matplotlib import pyplot as plt

    columns = min(len(scores.classes), 5)
    rows = -(-len(scores.classes) // columns)
    size = (2.4 * columns + 0.6, 2.3 * rows + 0.6)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    axes: list[Any] = list(grid.flat)
    for k, (axis, name) in enumerate(zip(axes, scores.classes, strict=False)):
        precision = scores.precision[:, :, k]
        known = (precision > -1).any()
        axis.set_title(f"{name}, AP {100 * precision.mean():.1f}" if known else name, fontsize=9, parse_math=False)
        axis.grid(alpha=0.3)
        if known:
            for iou, label, dash in ((0, "IoU 0.50", "-"), (5, "IoU 0.75", "--")):
                axis.plot(scores.recall, precision[iou], dash, color="#0072B2", label=label)
    for axis in axes[len(scores.classes) :]:
        axis.set_axis_off()
    axes[0].set(xlim=(0, 1), ylim=(0, 1.02))
    drawn = next((axis for axis in axes if axis.lines), axes[0])
    figure.legend(*drawn.get_legend_handles_labels(), fontsize=8, loc="outside upper right", ncols=2)
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
