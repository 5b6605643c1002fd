"""The gates of a trained network: which values Gather-Excite multiplies the features with, by block, class and channel.

A gate's value stands on the gathered grid, and each of its cells counts once, however much of the map it gates. It is
taken where the operator makes it, as the sigmoid of what its ``transform`` puts out: nothing is gathered twice.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from geexp.analysis import over_ranks
from geexp.analysis.observing import Batches, observe
from geexp.backbones.anatomy import blocks
from geexp.operators import VARIANTS, GatherExcite

CLOSED, OPEN = 0.05, 0.95
CONSTANT = 0.01


@dataclass(frozen=True)
class Gates:
    """How the gates are distributed.

    Attributes:
        histogram: a row per block, class with images, and bin: ``block``, ``stage``, ``class``, ``low``, ``high`` and
            ``count``, the values in [low, high), of all channels. The last bin holds 1 too.
        channels: a row per channel of a block: ``block``, ``stage``, ``channel``, the gate's ``mean``, ``std``, ``min``
            and ``max`` over images and cells, ``share_below`` 0.05 (shut), ``share_above`` 0.95 (wide open), and
            ``constant``: max − min < 0.01, a gate that no longer looks at its input.
    """

    histogram: pd.DataFrame
    channels: pd.DataFrame


def gate_distribution(model: nn.Module, batches: Batches, *, num_classes: int, bins: int = 100) -> Gates:
    """Measure all gates of the network in one pass over the images.

    Under DDP every rank gives its share of the images and gets the whole result.

    Raises:
        ValueError: for a network without Gather-Excite, labels out of range, no images, and gates that are not finite.
    """
    operators = {
        name: module
        for name, block in blocks(model).items()
        for module in block.modules()
        if isinstance(module, GatherExcite)
    }
    if not operators:
        raise ValueError(
            "no block of this network holds Gather-Excite: it has no gates to look at. Choose a network with "
            f"ge={', '.join(VARIANTS[:-1])} or {VARIANTS[-1]}"
        )
    device = next(model.parameters()).device
    counts = {name: _Counts(ge.channels, num_classes, bins, device) for name, ge in operators.items()}

    def see(block: str, logits: Tensor, labels: Tensor) -> None:
        gate = logits.sigmoid()
        if not gate.isfinite().all():
            raise ValueError(f"block {block}: gates are not finite, the network has diverged")
        counts[block].add(gate.double(), labels)

    transforms = {name: ge.excite.transform for name, ge in operators.items()}
    images_of = observe(model, batches, transforms, see, num_classes=num_classes)
    there = images_of.cpu().numpy().nonzero()[0]
    return Gates(
        pd.concat([count.histogram(name, there) for name, count in counts.items()], ignore_index=True),
        pd.concat([count.table(name) for name, count in counts.items()], ignore_index=True),
    )


class _Counts:
    """What is kept of one block's gates, on their device: sums, extremes and counts, no values."""

    def __init__(self, channels: int, num_classes: int, bins: int, device: torch.device) -> None:
        self._bins = bins
        self._counts = torch.zeros(num_classes * bins, dtype=torch.int64, device=device)
        self._sums = torch.zeros(4, channels, dtype=torch.float64, device=device)
        self._min = torch.full((channels,), torch.inf, dtype=torch.float64, device=device)
        self._max = torch.full((channels,), -torch.inf, dtype=torch.float64, device=device)

    def add(self, gate: Tensor, labels: Tensor) -> None:
        """``gate`` [n, channels, h, w] in [0, 1], float64, and ``labels`` [n]."""
        bin_of = (gate * self._bins).long().clamp_(max=self._bins - 1) + labels[:, None, None, None] * self._bins
        self._counts += torch.bincount(bin_of.flatten(), minlength=len(self._counts))
        # Squares of values around zero: of a gate that hardly varies, little is lost when the mean's is taken off.
        centred = gate - 0.5
        for row, values in enumerate((centred, centred.square(), gate < CLOSED, gate > OPEN)):
            self._sums[row] += values.sum((0, 2, 3))
        self._min = torch.minimum(self._min, gate.amin((0, 2, 3)))
        self._max = torch.maximum(self._max, gate.amax((0, 2, 3)))

    def histogram(self, block: str, classes: np.ndarray) -> pd.DataFrame:
        """The counts of all ranks, for these classes."""
        counts = over_ranks.total(self._counts).view(-1, self._bins).cpu().numpy()[classes]
        edges = np.arange(self._bins + 1) / self._bins
        return pd.DataFrame(
            {
                "block": block,
                "stage": int(block[4]),
                "class": np.repeat(classes, self._bins),
                "low": np.tile(edges[:-1], len(classes)),
                "high": np.tile(edges[1:], len(classes)),
                "count": counts.ravel(),
            }
        )

    def table(self, block: str) -> pd.DataFrame:
        """The statistics of all ranks, a row per channel."""
        sums = over_ranks.total(self._sums).cpu().numpy()
        low, high = over_ranks.smallest(self._min).cpu().numpy(), over_ranks.largest(self._max).cpu().numpy()
        values = over_ranks.total(self._counts).sum().item() // len(low)
        mean, square, below, above = sums / values
        return pd.DataFrame(
            {
                "block": block,
                "stage": int(block[4]),
                "channel": np.arange(len(low)),
                "mean": mean + 0.5,
                "std": np.sqrt(np.maximum(square - mean**2, 0)),
                "min": low,
                "max": high,
                "share_below": below,
                "share_above": above,
                "constant": high - low < CONSTANT,
            }
        )
