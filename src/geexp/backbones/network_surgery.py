"""A network cut open at a block's sum, for analyses that change a residual branch and continue from there.

Nothing before the sum has to be computed again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from geexp.backbones import timm_private
from geexp.backbones.anatomy import blocks, named_blocks


class Cut(NamedTuple):
    """For a block's input x and the output of its slot, ``branch``: the block's output is ``join(branch, shortcut(x))``
    and the network's logits are ``rest`` of that.

    Branch, shortcut and output are ``[N, C, H, W]``, logits ``[N, num_classes]``. In eval mode these are the network's
    own operations, equal to the last bit. ``join`` may overwrite the branch.
    """

    shortcut: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    rest: Callable[[Tensor], Tensor]


def cut_at(model: nn.Module, name: str) -> Cut:
    """Cut the network open at the sum of the block of that name; the network stays as it is.

    Raises:
        ValueError: for a name that no block has, a block that concatenates (ShuffleNet's units of stride 2), and
            networks and blocks that are neither ours nor timm's and lack the methods described in ``anatomy``.
    """
    block = named_blocks(model, [name])[name]
    if not hasattr(model, "forward_head"):
        raise ValueError(
            f"{type(model).__name__} has no forward_head: only our backbones, timm's ResNets and networks with that "
            "method can be run from a block on"
        )
    halves = _halves(block)
    if halves is None:
        why = (
            "concatenates its shortcut and its branch, there is no sum whose identity path could be left alone"
            if getattr(block, "concatenates", False)
            else f"is a {type(block).__name__}, which is neither ours nor timm's and has no shortcut() and join()"
        )
        raise ValueError(f"block {name} {why}. Choose from {', '.join(blocks_with_sum(model)) or 'another network'}")
    return Cut(*halves, rest=_rest(model, name))


def blocks_with_sum(model: nn.Module) -> list[str]:
    """The names of the blocks that ``cut_at`` supports."""
    return [name for name, block in blocks(model).items() if _halves(block)]


def _halves(block: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] | None:
    if getattr(block, "concatenates", False):
        return None
    if hasattr(block, "shortcut") and hasattr(block, "join"):
        return block.shortcut, block.join
    return timm_private.shortcut_and_join(block)


def _rest(model: Any, name: str) -> Callable[[Tensor], Tensor]:
    names, every = zip(*blocks(model).items(), strict=True)
    following = every[names.index(name) + 1 :]

    def rest(x: Tensor) -> Tensor:
        for block in following:
            x = block(x)
        if hasattr(model, "after_stages"):
            x = model.after_stages(x)
        return model.forward_head(x)

    return rest
