"""The effective receptive field: how much each pixel of the image moves a block's central unit (Luo et al. 2016)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.table import Table

from geexp.report.analyses.stored import Analysis, Network
from geexp.report.canvas import canvas, save

if TYPE_CHECKING:
    from geexp.analysis.subject import Subject

SHARE = 0.95


def default_blocks(names: list[str]) -> list[str]:
    """The last block of each stage."""
    return [name for name, after in zip(names, [*names[1:], ""], strict=True) if name[:5] != after[:5]]


def measure(subject: "Subject") -> dict[str, pd.DataFrame]:
    """``field``: the share of the gradient's mass by block and pixel; ``areas``: how many pixels hold 95 % of it."""
    from geexp.analysis.receptive_field import area_holding, effective_receptive_field
    from geexp.backbones import blocks

    fields, areas = [], []
    for name in subject.settings.blocks or default_blocks(list(blocks(subject.model))):
        field = effective_receptive_field(subject.model, subject.batches(f"receptive field of {name}"), block=name)
        rows, columns = np.indices(field.shape)
        cells = {"row": rows.ravel(), "column": columns.ravel(), "mass": field.ravel()}
        fields.append(pd.DataFrame({"block": name} | cells))
        area = area_holding(field, SHARE)
        areas.append({"block": name, "pixels": area, "of": field.size, "share": SHARE, "side": area**0.5})
    return {"field": pd.concat(fields, ignore_index=True), "areas": pd.DataFrame(areas)}


def draw(analysis: Analysis, path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A map per network and block, with a line around the pixels that hold 95 % of the mass."""
    areas = analysis.tables["areas"]
    names = list(areas["block"].unique())
    title = title or f"Effective receptive field of a block's central unit, {analysis.networks[0].model}"
    title += f"; inside the line: {SHARE:.0%} of the gradient"
    figure, axes = canvas(len(analysis.networks), len(names), title, size=(3.1, 3.4))
    for number, network in enumerate(analysis.networks):
        for axis, name in zip(axes[number * len(names) :], names, strict=False):
            field = _field(analysis, network, name)
            shades = np.log10(np.maximum(field / field.max(), 1e-4))
            image = axis.imshow(shades, cmap="magma", vmin=-4, vmax=0, interpolation="nearest")
            axis.contour(field, levels=[_edge(field)], colors="#56B4E9", linewidths=1.2)
            of_block = areas[(areas["network"] == network.label) & (areas["block"] == name)].iloc[0]
            share = of_block["pixels"] / of_block["of"]
            axis.set_title(
                f"{network.label}, {name}\n{of_block['pixels']:,} pixels, {share:.0%} of the image", fontsize=9
            )
            axis.set_xlabel("column, pixels", fontsize=8)
            axis.set_ylabel("row, pixels", fontsize=8)
            axis.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, ticks=[-4, -3, -2, -1, 0])
    bar.ax.set_yticklabels(["≤ 0.0001", "0.001", "0.01", "0.1", "1"], fontsize=8)
    bar.set_label("mean absolute gradient, of its maximum", fontsize=8)
    return save(figure, path)


def summary(analysis: Analysis) -> Table:
    table = Table(title=f"effective receptive field, {analysis.networks[0].images:,} images")
    for heading in ("network", "block"):
        table.add_column(heading)
    for heading in (f"pixels that hold {SHARE:.0%}", "of the image", "side of that square"):
        table.add_column(heading, justify="right")
    for row in analysis.tables["areas"].to_dict("records"):
        figures = [f"{row['pixels']:,}", f"{row['pixels'] / row['of']:.0%}", f"{row['side']:.1f}"]
        table.add_row(row["network"], row["block"], *figures)
    return table


def _field(analysis: Analysis, network: Network, block: str) -> np.ndarray:
    mine = analysis.of(network, "field")
    mine = mine[mine["block"] == block]
    return mine.pivot(index="row", columns="column", values="mass").to_numpy()


def _edge(field: np.ndarray) -> float:
    """The mass of the last pixel that belongs to the area."""
    falling = np.sort(field, axis=None)[::-1]
    return float(falling[np.searchsorted(np.cumsum(falling), SHARE * falling.sum())])
