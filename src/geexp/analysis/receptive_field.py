"""The effective receptive field (Luo et al. 2016): how much a unit's value depends on each pixel of the image.

Gather-Excite widens it: with a global extent a gate depends on the whole image.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from geexp.analysis.drawing import canvas, save, text_table
from geexp.analysis.observing import Batches, over_ranks
from geexp.backbones.anatomy import blocks_by_stage, eval_mode, named_blocks

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from geexp.analysis.analyse import Analysis
    from geexp.analysis.loaded_run import LoadedRun

DEFAULT_IMAGES = 256  # each needs a backward pass, and the mean has converged by then
SHARE = 0.95


def effective_receptive_field(model: nn.Module, batches: Batches, *, block: str) -> np.ndarray:
    """The field of the central unit (h//2, w//2) of a block's output, ``[H, W]`` float64, normalised to the sum 1.

    It is the gradient of the unit, summed over the output's channels, with respect to the image: the mean of absolute
    values over the image's channels and over the images. The network is run up to that block only, and its parameters
    get no gradients. Under DDP every rank passes its share of the images and gets the whole result.

    Raises:
        ValueError: for an unknown block, no images, images of several sizes, and a gradient that is zero everywhere or
            not finite.
    """
    (target,) = named_blocks(model, [block]).values()
    first = next(model.parameters())
    field: Tensor | None = None
    for images, _ in batches:
        gradient = _gradient(model, target, images.to(first))
        own = gradient.abs().sum((0, 1), dtype=torch.float64)
        if field is not None and own.shape != field.shape:
            sizes = " and of ".join("x".join(map(str, one.shape)) for one in (own, field))
            raise ValueError(f"images of {sizes}: the field is a mean over images of one size")
        field = own if field is None else field + own

    # A rank without images does not know their size.
    shape = over_ranks(torch.tensor([0, 0] if field is None else field.shape, device=first.device), "MAX").tolist()
    if 0 in shape:
        raise ValueError("there were no images in the batches")
    if field is None:
        field = torch.zeros(shape, dtype=torch.float64, device=first.device)
    field = over_ranks(field)
    mass = field.sum()
    if not mass.isfinite():
        raise ValueError(f"block {block}: the gradient is not finite, the network has diverged")
    if mass == 0:
        raise ValueError(
            f"block {block}: the gradient is zero everywhere, so its central unit does not depend on the image. Its "
            "channels are dead (every ReLU before it is inactive), or its weights are zero"
        )
    return (field / mass).cpu().numpy()


def area_holding(field: np.ndarray, share: float = SHARE) -> int:
    """The number of pixels in the smallest set that holds this share of the field's mass (to within 1e-9).

    Raises:
        ValueError: for a share that is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}: must be above 0 and at most 1")
    held = np.sort(field, axis=None)[::-1].cumsum()
    # Tolerate rounding: 95 of a hundred equal pixels do hold 0.95.
    return int(np.searchsorted(held, (share - 1e-9) * held[-1])) + 1


def _gradient(model: nn.Module, target: nn.Module, images: Tensor) -> Tensor:
    """The gradient of the target's central unit, summed over channels and images, with respect to the images."""
    images = images.detach().requires_grad_()
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    outputs: list[Tensor] = []

    def stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)
        raise _Reached

    handle = target.register_forward_hook(stop)
    try:
        for parameter in wanted:  # their gradients would need more saved tensors
            parameter.requires_grad_(False)
        with eval_mode(model), torch.enable_grad():
            with suppress(_Reached):
                model(images)
            (output,) = outputs
            h, w = output.shape[2:]
            (gradient,) = torch.autograd.grad(output[:, :, h // 2, w // 2].sum(), images)
    finally:
        handle.remove()
        for parameter, requires in wanted.items():
            parameter.requires_grad_(requires)
    return gradient


class _Reached(Exception):  # noqa: N818  # not an error: leaves the forward pass early
    pass


def measure(run: "LoadedRun") -> "dict[str, pd.DataFrame]":
    """``field``: the share of the gradient's mass by block and pixel; ``areas``: the number of pixels holding 95 %.

    By default of the last block of each stage. ``side`` is that of a square of the same area, in pixels.
    """
    import pandas as pd

    fields, areas = [], []
    for name in run.settings.blocks or [list(blocks)[-1] for blocks in blocks_by_stage(run.model).values()]:
        field = effective_receptive_field(run.model, run.batches(f"receptive field of {name}"), block=name)
        rows, columns = np.indices(field.shape)
        cells = {"row": rows.ravel(), "column": columns.ravel(), "mass": field.ravel()}
        fields.append(pd.DataFrame({"block": name} | cells))
        area = area_holding(field, SHARE)
        areas.append({"block": name, "pixels": area, "of": field.size, "share": SHARE, "side": area**0.5})
    return {"field": pd.concat(fields, ignore_index=True), "areas": pd.DataFrame(areas)}


def draw(analysis: "Analysis", path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A map per network and block, with a line around the pixels that hold 95 % of the mass."""
    names = list(analysis.tables["areas"]["block"].unique())
    title = title or f"Effective receptive field of a block's central unit, {analysis.networks[0].model}"
    title += f"; inside the line: {SHARE:.0%} of the gradient"
    figure, axes = canvas(len(analysis.networks), len(names), title, size=(3.1, 3.4))
    for number, network in enumerate(analysis.networks):
        for axis, name in zip(axes[number * len(names) :], names, strict=False):
            mine = analysis.of(network, "field", block=name)
            field = mine.pivot(index="row", columns="column", values="mass").to_numpy()
            edge = np.sort(field, axis=None)[-area_holding(field, SHARE)]  # the smallest mass inside the area
            shades = np.log10(np.maximum(field / field.max(), 1e-4))
            image = axis.imshow(shades, cmap="magma", vmin=-4, vmax=0, interpolation="nearest")
            axis.contour(field, levels=[edge], colors="#56B4E9", linewidths=1.2)
            of_block = analysis.of(network, "areas", block=name).iloc[0]
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


def summary(analysis: "Analysis") -> "Table":
    title = f"effective receptive field, {analysis.networks[0].images:,} images"
    headings = (f"pixels that hold {SHARE:.0%}", "of the image", "side of that square")
    table = text_table(title, ("network", "block"), headings)
    for row in analysis.tables["areas"].to_dict("records"):
        figures = [f"{row['pixels']:,}", f"{row['pixels'] / row['of']:.0%}", f"{row['side']:.1f}"]
        table.add_row(row["network"], row["block"], *figures)
    return table
