"""Class selectivity (paper, Figures 3 and 7): how much a feature map prefers one class to the others."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.table import Table

from geexp.config.errors import ConfigError
from geexp.report.analyses.looks import looks_of
from geexp.report.analyses.stored import Analysis
from geexp.report.canvas import canvas, save

if TYPE_CHECKING:
    from geexp.analysis.subject import Subject

BINS = 25


def measure(subject: "Subject") -> dict[str, pd.DataFrame]:
    """``features``: a row per feature map that is not dead; ``blocks``: a row per block, with the dead ones' number."""
    from geexp.analysis.selectivity import class_selectivity
    from geexp.backbones import blocks

    chosen, stage = subject.settings.blocks, subject.settings.stage
    if stage is not None:
        chosen = [name for name in blocks(subject.model) if name.startswith(f"conv{stage}_")]
        if not chosen:
            raise ConfigError(f"stage={stage}: the network has blocks {', '.join(blocks(subject.model))} only.")
    found = class_selectivity(
        subject.model, subject.batches("class selectivity"), num_classes=subject.num_classes, blocks=chosen
    )
    return {"features": found.features, "blocks": found.blocks}


def draw(analysis: Analysis, path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A histogram per block, the networks over each other."""
    features, per_block = analysis.tables["features"], analysis.tables["blocks"]
    names = list(per_block["block"].unique())
    columns = min(3, len(names))
    title = title or f"Class selectivity of the feature maps, {analysis.networks[0].model}"
    rows = -(-len(names) // columns)
    figure, axes = canvas(rows, columns, title, size=(4.2, 3.3), sharex=True, sharey=True)
    looks = looks_of(analysis.networks)
    edges = np.linspace(0, 1, BINS + 1)
    for axis, name in zip(axes, names, strict=False):
        for network, look in zip(analysis.networks, looks, strict=True):
            mine = features[(features["network"] == network.label) & (features["block"] == name)]
            shares = np.histogram(mine["selectivity"], edges)[0] / max(1, len(mine)) * 100
            axis.stairs(shares, edges, fill=True, color=look["color"], alpha=0.25)
            axis.stairs(shares, edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.6)
            if len(mine):
                axis.plot([mine["selectivity"].mean()], [0], look["marker"], color=look["color"], clip_on=False, ms=7)
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
    lines = [axes[0].plot([], [], **{key: look[key] for key in keys})[0] for look in looks]
    figure.legend(lines, [f"{n.label} (mark: mean)" for n in analysis.networks], loc="outside lower center", ncols=2)
    return save(figure, path)


def summary(analysis: Analysis) -> Table:
    table = Table(title=f"class selectivity, {analysis.networks[0].images:,} images")
    for heading in ("network", "block"):
        table.add_column(heading)
    for heading in ("feature maps", "dead", "mean index", "median"):
        table.add_column(heading, justify="right")
    for row in analysis.tables["blocks"].to_dict("records"):
        index = ["" if pd.isna(row[key]) else f"{row[key]:.3f}" for key in ("mean_selectivity", "median_selectivity")]
        table.add_row(row["network"], row["block"], str(row["features"]), str(row["dead"]), *index)
    return table
