"""The gates' values, by stage and class: one that is shut, open or constant everywhere no longer chooses anything."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.table import Table

from geexp.report.analyses.looks import looks_of
from geexp.report.analyses.stored import Analysis
from geexp.report.canvas import canvas, save

if TYPE_CHECKING:
    from geexp.analysis.subject import Subject


def measure(subject: "Subject") -> dict[str, pd.DataFrame]:
    """``histogram``: counts by block, class and bin; ``channels``: each gate's mean, spread and range."""
    from geexp.analysis.gates import gate_distribution

    found = gate_distribution(subject.model, subject.batches("gates"), num_classes=subject.num_classes)
    return {"histogram": found.histogram, "channels": found.channels}


def draw(analysis: Analysis, path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A panel per stage: the distribution over all images as a line, that of the single classes as a band."""
    histogram = analysis.tables["histogram"]
    stages = sorted(histogram["stage"].unique())
    title = title or f"Values of the gates, {analysis.networks[0].model}"
    figure, axes = canvas(1, len(stages), title, size=(3.9, 4.0), sharex=True)
    looks = looks_of(analysis.networks)
    for axis, stage in zip(axes, stages, strict=True):
        for network, look in zip(analysis.networks, looks, strict=True):
            mine = histogram[(histogram["network"] == network.label) & (histogram["stage"] == stage)]
            if not len(mine):
                continue
            counts = mine.pivot_table(index="class", columns="low", values="count", aggfunc="sum")
            counts = counts[counts.sum(axis=1) > 0]
            edges = np.append(counts.columns.to_numpy(), 1.0)
            density = counts.to_numpy() / counts.to_numpy().sum(axis=1, keepdims=True) * 100
            low, high = density.min(axis=0), density.max(axis=0)
            axis.stairs(high, edges, baseline=low, fill=True, color=look["color"], alpha=0.2)
            whole = counts.to_numpy().sum(axis=0) / counts.to_numpy().sum() * 100
            axis.stairs(whole, edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.6)
        axis.set_title(f"stage {stage}", fontsize=10)
        axis.set_xlim(0, 1)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("gate")
    axes[0].set_ylabel("gates per bin of 0.01, %")
    lines = [axes[0].plot([], [], color=look["color"], linestyle=look["linestyle"])[0] for look in looks]
    words = [f"{network.label}: all images; band: from class to class" for network in analysis.networks]
    figure.legend(lines, words, loc="outside lower center", ncols=2, fontsize=9)
    return save(figure, path)


def summary(analysis: Analysis) -> Table:
    table = Table(title=f"gates, {analysis.networks[0].images:,} images")
    for heading in ("network", "block"):
        table.add_column(heading)
    for heading in ("channels", "mean", "std", "below 0.05", "above 0.95", "constant channels"):
        table.add_column(heading, justify="right")
    for (network, block), rows in analysis.tables["channels"].groupby(["network", "block"], sort=False):
        spread = float(np.sqrt((rows["std"] ** 2).mean() + rows["mean"].var(ddof=0)))
        figures = [f"{rows['mean'].mean():.3f}", f"{spread:.3f}", f"{rows['share_below'].mean():.1%}"]
        figures += [f"{rows['share_above'].mean():.1%}", str(int(rows["constant"].sum()))]
        table.add_row(str(network), str(block), str(len(rows)), *figures)
    return table
