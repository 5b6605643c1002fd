"""Cut a network at a block's residual sum, for analyses that change the branch and continue from there.

Layers before the sum need not be computed again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from geexp.backbones import timm_private
from geexp.backbones.anatomy import blocks, named_blocks


class Cut(NamedTuple):
    """A network cut at a block: logits = ``rest(join(branch, shortcut(x)))``.

    x is the block's input and ``branch`` the output of its slot. Branch, shortcut and block output are
    ``[N, C, H, W]``, logits ``[N, num_classes]``. In eval mode these are the network's own operations, so results are
    bit-identical. ``join`` may overwrite the branch.
    """

    shortcut: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    rest: Callable[[Tensor], Tensor]


def cut_at(model: nn.Module, name: str) -> Cut:
    """Cut the network at the sum of the named block; the network itself does not change.

    Raises:
        ValueError: for an unknown name, a block that concatenates (ShuffleNet's units of stride 2), and custom networks
            or blocks without the methods described in ``anatomy``.
    """
    block = named_blocks(model, [name])[name]
    if not hasattr(model, "forward_head"):
        raise ValueError(
            f"{type(model).__name__} has no forward_head: only geexp's backbones, timm's ResNets and networks with "
            "that method can be run from a block onwards"
        )
    halves = _halves(block)
    if halves is None:
        why = (
            "concatenates its shortcut and its branch, so it has no residual sum to cut at"
            if getattr(block, "concatenates", False)
            else f"is a {type(block).__name__}, a custom block without shortcut() and join()"
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
