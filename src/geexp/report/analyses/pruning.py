"""Feature importance (paper, Figures 5 and 8): accuracy without the channels that excite ranks low, or high."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.table import Table

from geexp.report.analyses.looks import looks_of
from geexp.report.analyses.stored import Analysis
from geexp.report.canvas import canvas, save

if TYPE_CHECKING:
    from geexp.analysis.subject import Subject

# Line and fill of the two orders of dropping; a network's own colour and marker tell networks apart.
_ORDERS = {"ascending": ("-", "full", "least important first"), "descending": ("--", "none", "most important first")}
REFERENCE = "reference"


def default_blocks(names: list[str]) -> list[str]:
    """The first block of each of the last three stages: conv3_1, conv4_1 and conv5_1, as in the paper."""
    return [name for name in names if name.endswith("_1")][-3:]


def measure(subject: "Subject") -> dict[str, pd.DataFrame]:
    """``curves``: a row per block, order and ratio; of a network without GE only the ratios 0 and 1."""
    from geexp.analysis.pruning import branch_removal, importance_pruning
    from geexp.backbones import blocks

    settings = subject.settings
    chosen = settings.blocks or default_blocks(list(blocks(subject.model)))
    if subject.beside and subject.config.ge.variant == "none":
        curves = branch_removal(subject.model, subject.batches("reference points"), blocks=chosen)
        return {"curves": curves.assign(order=REFERENCE)}
    ratios = settings.ratios or [step / 10 for step in range(11)]
    return {
        "curves": importance_pruning(subject.model, subject.batches("feature importance"), blocks=chosen, ratios=ratios)
    }


def draw(analysis: Analysis, path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A panel per block: accuracy against the ratio of dropped channels."""
    curves = analysis.tables["curves"]
    names = list(curves["block"].unique())
    title = title or f"Accuracy without the feature maps that excite ranks low or high, {analysis.networks[0].model}"
    figure, axes = canvas(1, len(names), title, size=(3.9, 4.2), sharey=True)
    lines = {}
    for axis, name in zip(axes, names, strict=True):
        for network, look in zip(analysis.networks, looks_of(analysis.networks), strict=True):
            mine = curves[(curves["network"] == network.label) & (curves["block"] == name)]
            style = {"color": look["color"], "marker": look["marker"], "markersize": 5}
            for order, (dashes, fill, words) in _ORDERS.items():
                rows = mine[mine["order"] == order].sort_values("ratio")
                if len(rows):
                    how = style | {"linestyle": dashes, "fillstyle": fill}
                    lines[f"{network.label}, {words}"] = axis.plot(rows["ratio"], rows["top1_accuracy"], **how)[0]
            points = mine[mine["order"] == REFERENCE]
            if len(points):
                how = style | {"linestyle": "none", "markersize": 9}
                label = f"{network.label}, whole and without the branch"
                lines[label] = axis.plot(points["ratio"], points["top1_accuracy"], zorder=5, **how)[0]
        axis.set_title(name, fontsize=10)
        axis.set_xlim(-0.04, 1.04)
        axis.set_xlabel("ratio of feature maps dropped")
    axes[0].set_ylabel("top-1 accuracy, %")
    axes[0].set_ylim(bottom=0)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(3, len(lines)), fontsize=9)
    return save(figure, path)


def summary(analysis: Analysis) -> Table:
    """A row per network and ratio: for every block, dropping the least important first, and the most important."""
    curves = analysis.tables["curves"]
    blocks = list(curves["block"].unique())
    title = f"top-1 accuracy, %, least / most important feature maps dropped, {analysis.networks[0].images:,} images"
    table = Table(title=title)
    table.add_column("network")
    for heading in ("dropped", *blocks):
        table.add_column(heading, justify="right")
    for network in analysis.networks:
        mine = analysis.of(network, "curves")
        for ratio in sorted(mine["ratio"].unique()):
            here = mine[mine["ratio"] == ratio].sort_values("order")
            cells = [here[here["block"] == block]["top1_accuracy"].unique() for block in blocks]
            table.add_row(network.label, f"{ratio:.0%}", *(" / ".join(f"{a:.2f}" for a in cell) for cell in cells))
    return table
