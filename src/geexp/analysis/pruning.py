"""Do gates find the channels that matter? Accuracy with channels dropped by importance (paper, Figures 5 and 8).

For each test image the channels of one block are sorted by the importance that its excite operator assigns, and a ratio
of them is zeroed in the residual branch, after the gate and before the sum. For a block without Gather-Excite the two
ends of such a curve are reference points: the whole network, and the network without the block's branch.

The network runs once per batch. Every point of a curve then costs only the layers after its block.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from geexp.analysis.drawing import canvas, save, text_table
from geexp.analysis.observing import Batches, gate_hooks, has_gate, operators_of, over_ranks, why_no_gate
from geexp.backbones.anatomy import blocks_by_stage, eval_mode, forward_hooks, named_blocks
from geexp.backbones.network_surgery import Cut, blocks_with_sum, cut_at

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from geexp.analysis.analyse import Analysis
    from geexp.analysis.loaded_run import LoadedRun

ORDERS = ("ascending", "descending")
RATIOS = tuple(tenths / 10 for tenths in range(11))
REFERENCE = "reference"
# Line and fill of the two orders, as in the captions of Figures 5 and 8; colour and marker distinguish networks.
_ORDER_STYLES = {
    "ascending": ("--", "none", "least important first"),
    "descending": ("-", "full", "most important first"),
}


def importance_pruning(
    model: nn.Module, batches: Batches, *, blocks: Sequence[str], ratios: Sequence[float] = RATIOS
) -> "pd.DataFrame":
    """Top-1 accuracy with a ratio of one block's channels dropped, by their importance for each image.

    Importance is the channel's gate, or its spatial mean over the feature map where the extent is not global [choice].
    Of C channels round(ratio · C) are dropped [choice]; among equals the one of lower index goes first. Ratio 0 is the
    network's own prediction and ratio 1 that of the identity path alone, for the batches as they come.

    Args:
        model: a network of ours, or timm's ResNet, with Gather-Excite in the blocks. It is left as it was. A user's
            operator needs ``channels`` and ``gate(x)``, see ``observing.has_gate``.
        batches: images ``[N, C, H, W]``, normalised, and labels ``[N]``; moved to the model's device and dtype. Under
            DDP every rank passes its share of the images and gets the whole table.
        blocks: by the paper's names, ``conv4_1``; each is pruned alone.
        ratios: shares of the channels to drop, each from 0 to 1.

    Returns:
        A row per block, order and ratio: ``block``, ``order`` (``ascending``: the least important are dropped first),
        ``ratio``, ``dropped`` of the ``channels``, ``correct`` of the ``images``, ``top1_accuracy`` in percent.

    Raises:
        ValueError: for a block that does not exist, ends in no sum or holds no operator with gates, ratios outside
            0 to 1, and no images.
    """
    import pandas as pd

    if not ratios or not all(0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios={list(ratios)}: the shares of the channels to drop, numbers from 0 to 1")
    cuts = _cuts(model, blocks)
    table = pd.DataFrame(product(cuts, ORDERS, ratios), columns=["block", "order", "ratio"])
    channels = table["block"].map({name: _channels(model, name) for name in cuts})
    dropped = (table["ratio"] * channels).round().astype(int)
    return _with_accuracy(table.assign(dropped=dropped, channels=channels), model, batches, cuts)


def branch_removal(model: nn.Module, batches: Batches, *, blocks: Sequence[str]) -> "pd.DataFrame":
    """Top-1 accuracy of the whole network (ratio 0) and without a block's branch (ratio 1).

    Reference points for a network without Gather-Excite; with it, the ends of ``importance_pruning``'s curves.

    Args:
        model, batches, blocks: as for ``importance_pruning``; the blocks may hold Gather-Excite or not.

    Returns:
        A row per block and ratio: ``block``, ``order`` (``reference``), ``ratio``, ``correct`` of the ``images``,
        ``top1_accuracy`` in percent.

    Raises:
        ValueError: for a block that does not exist or ends in no sum, and no images.
    """
    import pandas as pd

    cuts = _cuts(model, blocks)
    table = pd.DataFrame(product(cuts, [REFERENCE], [0.0, 1.0]), columns=["block", "order", "ratio"])
    return _with_accuracy(table, model, batches, cuts)


def _cuts(model: nn.Module, blocks: Sequence[str]) -> dict[str, Cut]:
    if not blocks:
        raise ValueError("blocks=[]: name at least one, as in ['conv4_1']")
    return {name: cut_at(model, name) for name in blocks}


def _channels(model: nn.Module, name: str) -> int:
    """The channels of the named block's operator. Raises ``ValueError`` if it has no gates."""
    operators: dict[str, Any] = operators_of(model, blocks_with_sum(model))
    if has_gate(operators[name]):
        return operators[name].channels
    choice = ", ".join(n for n, operator in operators.items() if has_gate(operator))
    raise ValueError(
        f"block {name} of this network {why_no_gate(operators[name])}, so its channels have no importance. "
        + (f"Choose from {choice}" if choice else "Choose another network, or branch_removal for its reference points")
    )


def _with_accuracy(table: "pd.DataFrame", model: nn.Module, batches: Batches, cuts: dict[str, Cut]) -> "pd.DataFrame":
    """The table with the accuracy at the point of each row, over all ranks; equal points are computed once."""
    rows = table[["block", "order", "ratio"]].itertuples(index=False)
    # The order matters only where some channels are dropped and others are not.
    points = [(name, order if 0 < ratio < 1 else "", ratio) for name, order, ratio in rows]
    distinct = list(dict.fromkeys(points))
    first = next(model.parameters())
    sums = torch.zeros(len(distinct) + 1, dtype=torch.int64, device=first.device)
    with eval_mode(model), torch.no_grad():
        for images, labels in batches:
            labels = labels.to(first.device)
            logits, inputs, branches, gates = _run(model, images.to(first), cuts)
            shortcuts = {name: cut.shortcut(inputs[name]) for name, cut in cuts.items()}
            places = {name: _places(_importance(gates[name], *branches[name].shape[2:])) for name in gates}
            for index, (name, order, ratio) in enumerate(distinct):
                answer = logits
                if ratio > 0:
                    branch = torch.zeros_like(shortcuts[name])
                    if ratio < 1:
                        dropped = round(ratio * branch.shape[1])
                        branch = branches[name] * (places[name][order] >= dropped)[:, :, None, None]
                    answer = cuts[name].rest(cuts[name].join(branch, shortcuts[name]))
                sums[index] += (_top1(answer) == labels).sum()
            sums[-1] += len(labels)
    *counts, images_shown = over_ranks(sums).tolist()
    if not images_shown:
        raise ValueError("there were no images in the batches")
    correct = dict(zip(distinct, counts, strict=True))
    table = table.assign(correct=[correct[point] for point in points], images=images_shown)
    return table.assign(top1_accuracy=100 * table["correct"] / images_shown)


def _run(
    model: nn.Module, images: Tensor, names: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The network's logits, and by block its input; with Gather-Excite also the branch after the gate, and the gate."""
    inputs: dict[str, Tensor] = {}
    branches: dict[str, Tensor] = {}
    gates: dict[str, Tensor] = {}
    gated: dict[str, Any] = {name: one for name, one in operators_of(model, names).items() if has_gate(one)}
    with ExitStack() as hooks:
        for name, block in named_blocks(model, names).items():
            handle = block.register_forward_pre_hook(lambda _m, x, name=name: inputs.__setitem__(name, x[0]))
            hooks.callback(handle.remove)
        # A copy: timm's blocks add the shortcut to the branch in place.
        hooks.enter_context(forward_hooks(gated, lambda name, output: branches.__setitem__(name, output.clone())))
        hooks.enter_context(gate_hooks(gated, gates.__setitem__))
        return model(images), inputs, branches, gates


def _importance(gate: Tensor, height: int, width: int) -> Tensor:
    """The spatial mean on the feature map of a gate [N, C, h, w] on the small grid: [N, C].

    Cells are weighted by their number of pixels after nearest resizing, which differs if h does not divide the height.
    """
    rows, columns = _shares(height, gate.shape[2]), _shares(width, gate.shape[3])
    return (gate * (rows[:, None] * columns).to(gate)).sum((2, 3))


def _shares(size: int, cells: int) -> Tensor:
    """The share of the ``size`` positions i in each cell ⌊i·cells/size⌋, ``[cells]``."""
    return torch.bincount(torch.arange(size) * cells // size, minlength=cells).double() / size


def _places(importance: Tensor) -> dict[str, Tensor]:
    """For each order the rank of each channel in it, from 0: [N, C] → [N, C]."""
    return {
        order: importance.sort(dim=1, descending=order == "descending", stable=True).indices.argsort(dim=1)
        for order in ORDERS
    }


def _top1(logits: Tensor) -> Tensor:
    """The predicted class. With equal logits ``argmax`` may differ from ``topk``, which evaluation uses."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices[:, 0]


def default_blocks(model: nn.Module) -> list[str]:
    """The first block of each of the last three stages: conv3_1, conv4_1 and conv5_1.

    The paper shows three blocks and names only conv5-1; the other two are our choice.
    """
    return [next(iter(blocks)) for blocks in blocks_by_stage(model).values()][-3:]


def measure(run: "LoadedRun") -> "dict[str, pd.DataFrame]":
    """``curves``: a row per block, order and ratio; for a reference network without GE only the ratios 0 and 1."""
    chosen = run.settings.blocks or default_blocks(run.model)
    if run.is_reference and run.config.ge.variant == "none":
        return {"curves": branch_removal(run.model, run.batches("reference points"), blocks=chosen)}
    batches, ratios = run.batches("feature importance"), run.settings.ratios or RATIOS
    return {"curves": importance_pruning(run.model, batches, blocks=chosen, ratios=ratios)}


def draw(analysis: "Analysis", path: Path, title: str | None = None) -> tuple[Path, ...]:
    """A panel per block: accuracy against the ratio of dropped channels."""
    names = list(analysis.tables["curves"]["block"].unique())
    title = title or f"Accuracy without the least or the most important feature maps, {analysis.networks[0].model}"
    figure, axes = canvas(1, len(names), title, size=(3.9, 4.2), sharey=True)
    lines = {}
    for axis, name in zip(axes, names, strict=True):
        for network, own in analysis.styled:
            mine = analysis.of(network, "curves", block=name)
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
