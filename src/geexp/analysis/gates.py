"""The gates of a trained network: the values by which Gather-Excite scales the features, by block, class and channel.

Gates are counted on the gathered grid, each cell once, however many pixels it gates.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from geexp.analysis.drawing import canvas, save, text_table
from geexp.analysis.observing import Batches, gate_hooks, has_gate, observe, operators_of, over_ranks, why_no_gate
from geexp.backbones.anatomy import blocks_by_stage
from geexp.operators import VARIANTS

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from geexp.analysis.analyse import Analysis
    from geexp.analysis.loaded_run import LoadedRun

CLOSED, OPEN = 0.05, 0.95
CONSTANT = 0.01


def gate_distribution(
    model: nn.Module, batches: Batches, *, num_classes: int, bins: int = 100
) -> "dict[str, pd.DataFrame]":
    """Measure all gates of the network in one pass over the images.

    Under DDP every rank passes its share of the images and gets the whole result.

    Returns:
        ``histogram``: a row per block, class and bin that is not empty: ``block``, ``stage``, ``class``, ``low``,
        ``high`` and ``count``, the values in [low, high) over all channels. The last bin includes 1.
        ``channels``: a row per channel of a block: ``block``, ``stage``, ``channel``, the gate's ``mean``, ``std``,
        ``min`` and ``max`` over images and cells, ``share_below`` 0.05 (closed), ``share_above`` 0.95 (open), and
        ``constant``: max − min < 0.01, a gate that does not depend on its input.

    Raises:
        ValueError: for a network without Gather-Excite, labels out of range, no images, and gates outside 0 … 1 or not
            finite.
    """
    import pandas as pd

    held = operators_of(model)
    operators: dict[str, Any] = {name: operator for name, operator in held.items() if has_gate(operator)}
    if not operators:
        filled = [name for name, operator in held.items() if not isinstance(operator, nn.Identity | None)]
        why = f"block {filled[0]} {why_no_gate(held[filled[0]])}" if filled else "no block holds Gather-Excite"
        raise ValueError(
            f"this network has no gates: {why}. Choose a network with ge={', '.join(VARIANTS[:-1])} or {VARIANTS[-1]}"
        )
    device = next(model.parameters()).device
    counts = {name: _Counts(operator.channels, num_classes, bins, device) for name, operator in operators.items()}

    def see(block: str, gate: Tensor, labels: Tensor) -> None:
        if not ((gate >= 0) & (gate <= 1)).all():
            raise ValueError(f"block {block}: gates are not finite or outside 0 … 1; the network may have diverged")
        counts[block].add(gate.double(), labels)

    observe(model, batches, operators, see, num_classes=num_classes, hooks=gate_hooks)
    stage_of = {name: stage for stage, blocks in blocks_by_stage(model).items() for name in blocks}
    histograms, channels = [], []
    for name, count in counts.items():
        place = {"block": name, "stage": stage_of[name]}
        histograms.append(pd.DataFrame(place | count.histogram()))
        channels.append(pd.DataFrame(place | count.channels()))
    return {
        "histogram": pd.concat(histograms, ignore_index=True),
        "channels": pd.concat(channels, ignore_index=True),
    }


class _Counts:
    """Sums, extremes and counts of one block's gates, on their device; the values are not kept."""

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
        # Centred, so that the variance of a gate that hardly varies is not lost in E[x²] - E[x]².
        centred = gate - 0.5
        for row, values in enumerate((centred, centred.square(), gate < CLOSED, gate > OPEN)):
            self._sums[row] += values.sum((0, 2, 3))
        self._min = torch.minimum(self._min, gate.amin((0, 2, 3)))
        self._max = torch.maximum(self._max, gate.amax((0, 2, 3)))

    def histogram(self) -> dict[str, np.ndarray]:
        """The counts of all ranks, without the empty bins."""
        counts = over_ranks(self._counts).view(-1, self._bins).cpu().numpy()
        classes, bins = counts.nonzero()
        return {
            "class": classes,
            "low": bins / self._bins,
            "high": (bins + 1) / self._bins,
            "count": counts[classes, bins],
        }

    def channels(self) -> dict[str, np.ndarray]:
        """The statistics of all ranks, for each channel."""
        sums = over_ranks(self._sums).cpu().numpy()
        low, high = over_ranks(self._min, "MIN").cpu().numpy(), over_ranks(self._max, "MAX").cpu().numpy()
        values = over_ranks(self._counts).sum().item() // len(low)
        mean, square, below, above = sums / values
        return {
            "channel": np.arange(len(low)),
            "mean": mean + 0.5,
            "std": np.sqrt(np.maximum(square - mean**2, 0)),
            "min": low,
            "max": high,
            "share_below": below,
            "share_above": above,
            "constant": high - low < CONSTANT,
        }


def measure(run: "LoadedRun") -> "dict[str, pd.DataFrame]":
    """``histogram`` and ``channels``, see ``gate_distribution``."""
    return gate_distribution(run.model, run.batches("gates"), num_classes=run.num_classes)


def draw(analysis: "Analysis", path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A panel per stage: the distribution over all images as a line, those of the single classes as a band."""
    stages = sorted(analysis.tables["histogram"]["stage"].unique())
    title = title or f"Values of the gates, {analysis.networks[0].model}"
    figure, axes = canvas(1, len(stages), title, size=(3.9, 4.0), sharex=True)
    for axis, stage in zip(axes, stages, strict=True):
        for network, style in analysis.styled:
            mine = analysis.of(network, "histogram", stage=stage)
            if not len(mine):
                continue
            bins = round(1 / (mine["high"] - mine["low"]).iloc[0])
            edges = np.linspace(0, 1, bins + 1)
            counts = np.zeros((mine["class"].max() + 1, bins))
            np.add.at(counts, (mine["class"], (mine["low"] * bins).round().astype(int)), mine["count"])
            counts = counts[counts.any(axis=1)]
            density = counts / counts.sum(axis=1, keepdims=True) * 100
            low, high = density.min(axis=0), density.max(axis=0)
            axis.stairs(high, edges, baseline=low, fill=True, color=style["color"], alpha=0.2)
            whole = counts.sum(axis=0) / counts.sum() * 100
            axis.stairs(whole, edges, color=style["color"], linestyle=style["linestyle"], linewidth=1.6)
        axis.set_title(f"stage {stage}", fontsize=10)
        axis.set_xlim(0, 1)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("gate")
    axes[0].set_ylabel("gates per bin of 0.01, %")
    lines = [
        axes[0].plot([], [], color=style["color"], linestyle=style["linestyle"])[0] for _, style in analysis.styled
    ]
    labels = [f"{network.label}: all images; band: range over classes" for network in analysis.networks]
    figure.legend(lines, labels, loc="outside lower center", ncols=2, fontsize=9)
    return save(figure, path)


def summary(analysis: "Analysis") -> "Table":
    headings = ("channels", "mean", "std", "below 0.05", "above 0.95", "constant channels")
    table = text_table(f"gates, {analysis.networks[0].images:,} images", ("network", "block"), headings)
    for (network, block), rows in analysis.tables["channels"].groupby(["network", "block"], sort=False):
        spread = float(np.sqrt((rows["std"] ** 2).mean() + rows["mean"].var(ddof=0)))
        figures = [f"{rows['mean'].mean():.3f}", f"{spread:.3f}", f"{rows['share_below'].mean():.1%}"]
        figures += [f"{rows['share_above'].mean():.1%}", str(int(rows["constant"].sum()))]
        table.add_row(str(network), str(block), str(len(rows)), *figures)
    return table
