"""Class selectivity of features (paper, Figures 3 and 7): the index of Morcos et al. 2018.

A feature is a channel of a block's output after its ReLU; its activation for an image is the spatial mean of the map.
Its index is (µ_max − µ_rest) / (µ_max + µ_rest), with µ_max the mean activation over the images of the class with the
highest mean, and µ_rest that over the other classes: 0 for a feature that responds to all classes alike, 1 for one that
responds to a single class. µ_rest is the mean of the other classes' means, so that all classes have equal weight; if
they are equally large it is the mean over their images.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from geexp.analysis.drawing import canvas, save, text_table
from geexp.analysis.observing import Batches, observe, over_ranks
from geexp.backbones import anatomy

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from geexp.analysis.analyse import Analysis
    from geexp.analysis.loaded_run import LoadedRun

BINS = 25


def class_selectivity(
    model: nn.Module, batches: Batches, *, num_classes: int, blocks: Iterable[str] | None = None
) -> "dict[str, pd.DataFrame]":
    """Measure the named blocks, by default all of stage 4, in one pass over the images.

    Classes without images are left out. Under DDP every rank passes its share of the images and gets the whole result.

    Returns:
        ``features``: a row per feature that is active for some image: ``block``, ``channel``, ``selectivity``,
        ``preferred_class``, ``mean_max`` and ``mean_rest`` (µ_max and µ_rest).
        ``blocks``: a row per block: ``block``, ``features`` (how many), ``dead`` (active for no image, so without an
        index), ``mean_selectivity`` and ``median_selectivity`` (NaN if all are dead), and the number of ``images`` and
        of ``classes`` among them.

    Raises:
        ValueError: for an unknown block or none, labels out of range, images of fewer than two classes, and for
            activations that are negative or not finite.
    """
    import pandas as pd

    if blocks is None:
        blocks = anatomy.blocks_by_stage(model).get(4, {})
    layers = anatomy.rectified_blocks(model, blocks)
    if not layers:
        choice = ", ".join(anatomy.blocks(model))
        raise ValueError(f"no blocks to measure, by default all of stage 4: name some of {choice}")

    sums: dict[str, Tensor] = {}  # per block [classes, channels], of the images' mean activations

    def see(block: str, output: Tensor, labels: Tensor) -> None:
        activations = output.mean((2, 3), dtype=torch.float64)
        if block not in sums:
            sums[block] = activations.new_zeros(num_classes, activations.shape[1])
        sums[block].index_add_(0, labels, activations)

    images_of = observe(model, batches, layers, see, num_classes=num_classes)
    there = images_of.nonzero().flatten()
    if len(there) < 2:
        raise ValueError(f"all images are of class {int(there[0])}: selectivity compares at least two classes")
    # A rank without images does not know the blocks' widths.
    widths = [sums[block].shape[1] if block in sums else 0 for block in layers]
    widths = over_ranks(torch.tensor(widths, device=images_of.device), "MAX").tolist()

    features, summary = [], []
    for block, width in zip(layers, widths, strict=True):
        none = torch.zeros(num_classes, width, dtype=torch.float64, device=images_of.device)
        means = (over_ranks(sums.get(block, none))[there] / images_of[there, None]).cpu().numpy()
        table = _table(block, there.cpu().numpy(), means)
        index = table["selectivity"]
        features.append(table)
        summary.append(
            {
                "block": block,
                "features": width,
                "dead": width - len(table),
                "mean_selectivity": index.mean(),
                "median_selectivity": index.median(),
                "images": int(images_of.sum()),
                "classes": len(there),
            }
        )
    return {"features": pd.concat(features, ignore_index=True), "blocks": pd.DataFrame(summary)}


def _table(block: str, classes: np.ndarray, means: np.ndarray) -> "pd.DataFrame":
    """The rows of one block's live features; ``means`` [classes, channels] are the mean activations per class."""
    import pandas as pd

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
    # Rounding may lift the mean of equal numbers above them.
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


def measure(run: "LoadedRun") -> "dict[str, pd.DataFrame]":
    """``features`` and ``blocks``, see ``class_selectivity``."""
    from geexp.config.errors import ConfigError

    chosen, stage = run.settings.blocks, run.settings.stage
    if stage is not None:
        available = anatomy.blocks_by_stage(run.model)
        if stage not in available:
            raise ConfigError(f"stage={stage}: the network has blocks {', '.join(anatomy.blocks(run.model))} only.")
        chosen = list(available[stage])
    return class_selectivity(run.model, run.batches("class selectivity"), num_classes=run.num_classes, blocks=chosen)


def draw(analysis: "Analysis", path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A histogram per block, the networks overlaid."""
    per_block = analysis.tables["blocks"]
    names = list(per_block["block"].unique())
    columns = min(3, len(names))
    title = title or f"Class selectivity of the feature maps, {analysis.networks[0].model}"
    rows = -(-len(names) // columns)
    figure, axes = canvas(rows, columns, title, size=(4.2, 3.3), sharex=True, sharey=True)
    edges = np.linspace(0, 1, BINS + 1)
    for axis, name in zip(axes, names, strict=False):
        for network, style in analysis.styled:
            mine = analysis.of(network, "features", block=name)
            shares = np.histogram(mine["selectivity"], edges)[0] / max(1, len(mine)) * 100
            axis.stairs(shares, edges, fill=True, color=style["color"], alpha=0.25)
            axis.stairs(shares, edges, color=style["color"], linestyle=style["linestyle"], linewidth=1.6)
            if len(mine):
                axis.plot([mine["selectivity"].mean()], [0], style["marker"], color=style["color"], clip_on=False, ms=7)
        of_block = per_block[per_block["block"] == name]
        dead = of_block.set_index("network")["dead"].to_dict()
        numbers = " / ".join(str(dead.get(network.label, 0)) for network in analysis.networks)
        note = f", dead: {numbers}" if any(dead.values()) else ""
        axis.set_title(f"{name}, {of_block['features'].iloc[0]} feature maps{note}", fontsize=9)
        axis.set_xlim(0, 1)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis in axes[max(0, len(names) - columns) : len(names)]:
        axis.set_xlabel("class selectivity index")
        axis.tick_params(labelbottom=True)
    for axis in axes[::columns]:
        axis.set_ylabel("feature maps, %")
    keys = ("color", "linestyle", "marker")
    lines = [axes[0].plot([], [], **{key: style[key] for key in keys})[0] for _, style in analysis.styled]
    figure.legend(lines, [f"{n.label} (mark: mean)" for n in analysis.networks], loc="outside lower center", ncols=2)
    return save(figure, path)


def summary(analysis: "Analysis") -> "Table":
    import pandas as pd

    headings = ("feature maps", "dead", "mean index", "median")
    table = text_table(f"class selectivity, {analysis.networks[0].images:,} images", ("network", "block"), headings)
    for row in analysis.tables["blocks"].to_dict("records"):
        index = ["" if pd.isna(row[key]) else f"{row[key]:.3f}" for key in ("mean_selectivity", "median_selectivity")]
        table.add_row(row["network"], row["block"], str(row["features"]), str(row["dead"]), *index)
    return table
