"""Class selectivity of features (paper, Figures 3 and 7): the index of Morcos et al. 2018.

A feature is a channel of a block's last layer, behind its ReLU; its activation for an image is the spatial mean of the
map. Its index is (µ_max − µ_rest) / (µ_max + µ_rest), with µ_max its mean activation over the images of the class that
excites it most, and µ_rest over the other classes: 0 for a feature that no class excites more than others, 1 for one
that fires for a single class. µ_rest is the mean of the other classes' means, so that a class weighs the same whatever
the number of its images; where classes are equally large it is the mean over their images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from geexp.analysis import over_ranks
from geexp.analysis.observing import Batches, observe
from geexp.backbones import anatomy


@dataclass(frozen=True)
class Selectivity:
    """The table of all features and its summary.

    Attributes:
        features: a row per feature that fires for some image: ``block``, ``channel``, ``selectivity``,
            ``preferred_class``, ``mean_max`` and ``mean_rest`` (µ_max and µ_rest).
        blocks: a row per block: ``block``, ``features`` (how many), ``dead`` (those of them that fire for no image and
            have no index), ``mean_selectivity`` and ``median_selectivity`` (None if all are dead), and the number of
            ``images`` and of ``classes`` among them.
    """

    features: pd.DataFrame
    blocks: pd.DataFrame


def class_selectivity(
    model: nn.Module, batches: Batches, *, num_classes: int, blocks: Iterable[str] | None = None
) -> Selectivity:
    """Measure the named blocks, by default all of stage 4, in one pass over the images.

    Classes without images are left out. Under DDP every rank gives its share of the images and gets the whole result.

    Raises:
        ValueError: for an unknown block or none, labels out of range, images of fewer than two classes, and for
            activations that are negative or not finite.
    """
    if blocks is None:
        blocks = [name for name in anatomy.blocks(model) if name.startswith("conv4_")]
    layers = anatomy.rectified_blocks(model, blocks)
    if not layers:
        choice = ", ".join(anatomy.blocks(model))
        raise ValueError(f"no blocks to look at, which by default are those of stage 4: name some of {choice}")

    sums: dict[str, Tensor] = {}  # per block [classes, channels], of the images' mean activations

    def see(block: str, output: Tensor, labels: Tensor) -> None:
        activations = output.mean((2, 3), dtype=torch.float64)
        if block not in sums:
            sums[block] = activations.new_zeros(num_classes, activations.shape[1])
        sums[block].index_add_(0, labels, activations)

    images_of = observe(model, batches, layers, see, num_classes=num_classes)
    there = images_of.nonzero().flatten()
    if len(there) < 2:
        raise ValueError(
            f"all images are of class {int(there[0])}: selectivity compares classes, so show images of at least two"
        )
    # A rank without images has not seen how wide the blocks are.
    widths = [sums[block].shape[1] if block in sums else 0 for block in layers]
    widths = over_ranks.largest(torch.tensor(widths, device=images_of.device)).tolist()

    features, summary = [], []
    for block, width in zip(layers, widths, strict=True):
        own = sums.pop(block, None)
        own = torch.zeros(num_classes, width, dtype=torch.float64, device=images_of.device) if own is None else own
        means = (over_ranks.total(own)[there] / images_of[there, None]).cpu().numpy()
        table = _table(block, there.cpu().numpy(), means)
        index = table["selectivity"]
        features.append(table)
        summary.append(
            {
                "block": block,
                "features": width,
                "dead": width - len(table),
                "mean_selectivity": float(index.mean()) if len(table) else None,
                "median_selectivity": float(index.median()) if len(table) else None,
                "images": int(images_of.sum()),
                "classes": len(there),
            }
        )
    numbers = {name: pd.Series([row[name] for row in summary], dtype=object) for name in _MAY_BE_NONE}
    return Selectivity(pd.concat(features, ignore_index=True), pd.DataFrame(summary).assign(**numbers))


_MAY_BE_NONE = ("mean_selectivity", "median_selectivity")  # in a column of floats None would be NaN


def _table(block: str, classes: np.ndarray, means: np.ndarray) -> pd.DataFrame:
    """The rows of one block's live features; ``means`` [classes, channels] are the activations' means per class."""
    if not np.isfinite(means).all():
        raise ValueError(f"block {block}: activations are not finite, the network has diverged")
    if means.min() < 0:
        row, channel = np.unravel_index(means.argmin(), means.shape)
        raise ValueError(
            f"block {block}: the mean activation of channel {channel} is {means.min():.3g} for class {classes[row]}; "
            "the index is defined for rectified activations only, so choose blocks that end in a ReLU"
        )
    live = means.max(axis=0).nonzero()[0]
    means = means[:, live]
    preferred = means.argmax(axis=0)
    mean_max = means.max(axis=0)
    others = np.where(np.arange(len(means))[:, None] == preferred, 0, means)
    # The mean of equal numbers may be rounded to above them.
    mean_rest = np.minimum(others.sum(axis=0) / (len(means) - 1), mean_max)
    return pd.DataFrame(
        {
            "block": block,
            "channel": live,
            "selectivity": (mean_max - mean_rest) / (mean_max + mean_rest),
            "preferred_class": classes[preferred],
            "mean_max": mean_max,
            "mean_rest": mean_rest,
        }
    )
