"""Do gates find the channels that matter? Accuracy with channels dropped by importance (paper, Figures 5 and 8).

For each test image the channels of one block are sorted by the importance that its excite operator assigns, and a ratio
of them is zeroed in the residual branch, after the gate and before the sum. For a block without Gather-Excite the two
ends of such a curve are reference points: the whole network, and the network without the block's branch.

The network runs once per batch. Every point of a curve then costs only the layers after its block.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from geexp.analysis.drawing import canvas, line_styles, save, text_table
from geexp.analysis.observing import Batches, total
from geexp.backbones.anatomy import blocks_by_stage, eval_mode, named_blocks, slot
from geexp.backbones.network_surgery import blocks_with_sum, cut_at
from geexp.operators import GatherExcite

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from geexp.analysis.analyse import Analysis
    from geexp.analysis.loaded_run import LoadedRun

ORDERS = ("ascending", "descending")
RATIOS = tuple(tenths / 10 for tenths in range(11))
REFERENCE = "reference"
# Line and fill of the two orders; a network's colour and marker distinguish networks.
_ORDER_STYLES = {
    "ascending": ("-", "full", "least important first"),
    "descending": ("--", "none", "most important first"),
}

P = TypeVar("P")


def importance_pruning(
    model: nn.Module, batches: Batches, *, blocks: Sequence[str], ratios: Sequence[float] = RATIOS
) -> "pd.DataFrame":
    """Top-1 accuracy with a ratio of one block's channels dropped, by their importance for each image.

    Importance is the channel's gate, or its spatial mean over the feature map where the extent is not global [choice].
    Of C channels round(ratio · C) are dropped [choice]; among equals the one of lower index goes first. Ratio 0 is the
    network's own prediction and ratio 1 that of the identity path alone, for the batches as they come.

    Args:
        model: a network of ours, or timm's ResNet, with Gather-Excite in the blocks. It is left as it was.
        batches: images ``[N, C, H, W]``, normalised, and labels ``[N]``; moved to the model's device and dtype. Under
            DDP every rank passes its share of the images and gets the whole table.
        blocks: by the paper's names, ``conv4_1``; each is pruned alone.
        ratios: shares of the channels to drop, each from 0 to 1.

    Returns:
        A row per block, order and ratio: ``block``, ``order`` (``ascending``: the least important are dropped first),
        ``ratio``, ``dropped`` of the ``channels``, ``correct`` of the ``images``, ``top1_accuracy`` in percent.

    Raises:
        ValueError: for a block that does not exist, ends in no sum or holds no Gather-Excite, ratios outside 0 to 1,
            and no images.
    """
    if not ratios or not all(0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios={list(ratios)}: the shares of the channels to drop, numbers from 0 to 1")
    cuts = {name: cut_at(model, name) for name in _some(blocks)}
    channels = {name: _operator(model, name).channels for name in cuts}
    rows = [
        (name, order, ratio, round(ratio * channels[name])) for name in cuts for order in ORDERS for ratio in ratios
    ]

    def point(name: str, order: str, dropped: int) -> tuple[str, str, int]:
        matters = 0 < dropped < channels[name]  # dropping none or all does not depend on the order
        return name, order if matters else ORDERS[0], dropped

    points = [point(name, order, dropped) for name, order, _, dropped in rows]

    def logits_at(images: Tensor) -> Iterator[tuple[tuple[str, str, int], Tensor]]:
        logits, seen = _run(model, images, cuts)
        for name, (shortcut_of, join, rest) in cuts.items():
            x, branch, gate = (seen[name][what] for what in ("x", "branch", "gate"))
            shortcut = shortcut_of(x)
            place = _places(_importance(gate, branch.shape[2], branch.shape[3]))
            for here, order, dropped in dict.fromkeys(points):
                if here == name and dropped == 0:
                    yield (name, order, dropped), logits
                elif here == name:
                    kept = (place[order] >= dropped)[:, :, None, None].to(branch.dtype)
                    yield (name, order, dropped), rest(join(branch * kept, shortcut))

    correct, images = _count(model, batches, points, logits_at)
    return _with_accuracy(
        {
            "block": [name for name, *_ in rows],
            "order": [order for _, order, *_ in rows],
            "ratio": [ratio for *_, ratio, _ in rows],
            "dropped": [dropped for *_, dropped in rows],
            "channels": [channels[name] for name, *_ in rows],
        },
        [correct[point] for point in points],
        images,
    )


def branch_removal(model: nn.Module, batches: Batches, *, blocks: Sequence[str]) -> "pd.DataFrame":
    """Top-1 accuracy of the whole network (ratio 0) and without a block's branch (ratio 1).

    Reference points for a network without Gather-Excite; with it, the ends of ``importance_pruning``'s curves.

    Args:
        model, batches, blocks: as for ``importance_pruning``; the blocks may hold Gather-Excite or not.

    Returns:
        A row per block and ratio: ``block``, ``ratio``, ``correct`` of the ``images``, ``top1_accuracy`` in percent.

    Raises:
        ValueError: for a block that does not exist or ends in no sum, and no images.
    """
    cuts = {name: cut_at(model, name) for name in _some(blocks)}
    points = [(name, ratio) for name in cuts for ratio in (0.0, 1.0)]

    def logits_at(images: Tensor) -> Iterator[tuple[tuple[str, float], Tensor]]:
        logits, seen = _run(model, images, cuts)
        for name, (shortcut_of, join, rest) in cuts.items():
            shortcut = shortcut_of(seen[name]["x"])
            yield (name, 0.0), logits
            yield (name, 1.0), rest(join(torch.zeros_like(shortcut), shortcut))

    correct, images = _count(model, batches, points, logits_at)
    return _with_accuracy(
        {"block": [name for name, _ in points], "ratio": [ratio for _, ratio in points]},
        [correct[point] for point in points],
        images,
    )


def _some(blocks: Sequence[str]) -> Sequence[str]:
    if not blocks:
        raise ValueError("blocks=[]: name at least one, as in ['conv4_1']")
    return blocks


def _operator(model: nn.Module, name: str) -> GatherExcite:
    """The operator in the named block. Raises ``ValueError`` if there is none."""
    operators = {n: getattr(block, slot(block)) for n, block in named_blocks(model, blocks_with_sum(model)).items()}
    if isinstance(operators[name], GatherExcite):
        return operators[name]
    choice = ", ".join(n for n, operator in operators.items() if isinstance(operator, GatherExcite))
    raise ValueError(
        f"block {name} of this network holds no Gather-Excite, so its channels have no importance. "
        + (f"Choose from {choice}" if choice else "Choose another network, or branch_removal for its reference points")
    )


def _run(model: nn.Module, images: Tensor, names: Iterable[str]) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """The network's logits, and for every named block its input ``x``; with Gather-Excite also the ``branch``
    [N, C, H, W] after the gate, and the ``gate`` [N, C, h, w] before its sigmoid."""
    seen: dict[str, dict[str, Tensor]] = {}
    with ExitStack() as hooks:
        for name, block in named_blocks(model, names).items():
            into = seen[name] = {}
            held = [block.register_forward_pre_hook(lambda _m, inputs, into=into: into.update(x=inputs[0]))]
            operator = getattr(block, slot(block))
            if isinstance(operator, GatherExcite):
                held += [
                    # A copy: timm's blocks add the shortcut to the branch in place.
                    operator.register_forward_hook(
                        lambda _m, _i, output, into=into: into.update(branch=output.clone())
                    ),
                    operator.excite.transform.register_forward_hook(
                        lambda _m, _i, output, into=into: into.update(gate=output)
                    ),
                ]
            for handle in held:
                hooks.callback(handle.remove)
        return model(images), seen


def _importance(gate: Tensor, height: int, width: int) -> Tensor:
    """The spatial mean of the gate on the feature map, from its logits [N, C, h, w] on the small grid: [N, C].

    Cells are weighted by their number of pixels after nearest resizing, which differs if h does not divide the height.
    Computed in float32 or better, to have fewer equally important channels.
    """
    rows, columns = _shares(height, gate.shape[2]), _shares(width, gate.shape[3])
    values = gate.to(torch.promote_types(gate.dtype, torch.float32)).sigmoid()
    return (values * (rows[:, None] * columns).to(values)).sum((2, 3))


def _shares(size: int, cells: int) -> Tensor:
    """The share of the ``size`` positions i in each cell ⌊i·cells/size⌋, ``[cells]``."""
    return torch.bincount(torch.arange(size) * cells // size, minlength=cells).double() / size


def _places(importance: Tensor) -> dict[str, Tensor]:
    """For each order the rank of each channel in it, from 0: [N, C] → [N, C]."""
    return {
        order: importance.sort(dim=1, descending=order == "descending", stable=True).indices.argsort(dim=1)
        for order in ORDERS
    }


def _count(
    model: nn.Module,
    batches: Batches,
    points: Iterable[P],
    logits_at: Callable[[Tensor], Iterable[tuple[P, Tensor]]],
) -> tuple[dict[P, int], int]:
    """The number of correctly classified images at every point, and the number of images, over all ranks."""
    points = list(dict.fromkeys(points))
    first = next(model.parameters())
    sums = torch.zeros(len(points) + 1, dtype=torch.int64, device=first.device)
    with eval_mode(model), torch.no_grad():
        for images, labels in batches:
            labels = labels.to(first.device)
            correct = {point: (_top1(logits) == labels).sum() for point, logits in logits_at(images.to(first))}
            sums[:-1] += torch.stack([correct[point] for point in points])
            sums[-1] += len(labels)
    *counts, images_shown = total(sums).tolist()
    if not images_shown:
        raise ValueError("there were no images in the batches")
    return dict(zip(points, counts, strict=True)), images_shown


def _top1(logits: Tensor) -> Tensor:
    """The predicted class. With equal logits ``argmax`` may differ from ``topk``, which evaluation uses."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices[:, 0]


def _with_accuracy(columns: dict[str, list], correct: list[int], images: int) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({**columns, "correct": correct, "images": images}).assign(
        top1_accuracy=[100 * right / images for right in correct]
    )


def default_blocks(model: nn.Module) -> list[str]:
    """The first block of each of the last three stages: conv3_1, conv4_1 and conv5_1, as in the paper."""
    return [next(iter(blocks)) for blocks in blocks_by_stage(model).values()][-3:]


def measure(run: "LoadedRun") -> "dict[str, pd.DataFrame]":
    """``curves``: a row per block, order and ratio; for a reference network without GE only the ratios 0 and 1."""
    chosen = run.settings.blocks or default_blocks(run.model)
    if run.is_reference and run.config.ge.variant == "none":
        return {
            "curves": branch_removal(run.model, run.batches("reference points"), blocks=chosen).assign(order=REFERENCE)
        }
    batches, ratios = run.batches("feature importance"), run.settings.ratios or RATIOS
    return {"curves": importance_pruning(run.model, batches, blocks=chosen, ratios=ratios)}


def draw(analysis: "Analysis", path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A panel per block: accuracy against the ratio of dropped channels."""
    curves = analysis.tables["curves"]
    names = list(curves["block"].unique())
    title = title or f"Accuracy without the least or the most important feature maps, {analysis.networks[0].model}"
    figure, axes = canvas(1, len(names), title, size=(3.9, 4.2), sharey=True)
    styles = line_styles([network.variant for network in analysis.networks])
    lines = {}
    for axis, name in zip(axes, names, strict=True):
        for network, own in zip(analysis.networks, styles, strict=True):
            mine = curves[(curves["network"] == network.label) & (curves["block"] == name)]
            style = {"color": own["color"], "marker": own["marker"], "markersize": 5}
            for order, (dashes, fill, words) in _ORDER_STYLES.items():
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


def summary(analysis: "Analysis") -> "Table":
    """A row per network and ratio; for every block two numbers, least and most important first."""
    curves = analysis.tables["curves"]
    blocks = list(curves["block"].unique())
    title = f"top-1 accuracy, %, least / most important feature maps dropped, {analysis.networks[0].images:,} images"
    table = text_table(title, ("network",), ("dropped", *blocks))
    for network in analysis.networks:
        mine = analysis.of(network, "curves")
        for ratio in sorted(mine["ratio"].unique()):
            here = mine[mine["ratio"] == ratio].sort_values("order")
            cells = [here[here["block"] == block]["top1_accuracy"].unique() for block in blocks]
            table.add_row(network.label, f"{ratio:.0%}", *(" / ".join(f"{a:.2f}" for a in cell) for cell in cells))
    return table
