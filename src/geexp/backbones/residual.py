"""A network cut open at a block's sum, for analyses that change a residual branch and go on from there.

What comes before the sum need not be computed again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import timm.models.res2net
import timm.models.resnet
from torch import Tensor, nn

from geexp.backbones.anatomy import blocks, named_blocks
from geexp.backbones.classifier_head import ClassifierHead
from geexp.backbones.preact_resnet import PreActBlock
from geexp.backbones.shufflenet import ShuffleUnit

# timm's blocks, by the activation that follows their sum.
_ACTIVATIONS: dict[type[nn.Module], str] = {
    timm.models.resnet.BasicBlock: "act2",
    timm.models.resnet.Bottleneck: "act3",
    timm.models.res2net.Bottle2neck: "relu",
}


class Cut(NamedTuple):
    """With x the block's input and branch what its slot hands on, the block is ``join(branch, shortcut(x))`` and the
    network's logits are ``rest(join(branch, shortcut(x)))``.

    Branch, shortcut and output are ``[N, C, H, W]``, logits ``[N, num_classes]``. In eval mode these are the network's
    own operations and give its own logits to the last bit. ``join`` may overwrite the branch.
    """

    shortcut: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    rest: Callable[[Tensor], Tensor]


def cut_at(model: nn.Module, name: str) -> Cut:
    """Cut the network open at the sum of the block of that name; the network stays as it is.

    Raises:
        ValueError: for a name that no block has, for a block that ends in no sum (ShuffleNet's units of stride 2
            concatenate), and for networks that are neither ours nor made of timm's ResNet, ResNeXt or Res2Net blocks.
    """
    block = named_blocks(model, [name])[name]
    if not isinstance(model, ClassifierHead | timm.models.resnet.ResNet):
        raise ValueError(f"{type(model).__name__}: only our backbones and timm's ResNet can be run from a block on")
    halves = _halves(block)
    if halves is None:
        why = (
            "concatenates its shortcut and its branch, there is no sum whose identity path could be left alone"
            if isinstance(block, ShuffleUnit)
            else f"is a {type(block).__name__}, which is not one of the blocks whose sum we know"
        )
        raise ValueError(f"block {name} {why}. Choose from {', '.join(blocks_with_sum(model)) or 'another network'}")
    return Cut(*halves, rest=_rest(model, name))


def blocks_with_sum(model: nn.Module) -> list[str]:
    """The names of the blocks that ``cut_at`` takes."""
    return [name for name, block in blocks(model).items() if _halves(block)]


def _halves(block: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] | None:
    if isinstance(block, PreActBlock) or (isinstance(block, ShuffleUnit) and block.stride == 1):
        return block.shortcut, block.join
    if type(block) not in _ACTIVATIONS:
        return None
    activation = getattr(block, _ACTIVATIONS[type(block)])

    def shortcut(x: Tensor) -> Tensor:
        return x if block.downsample is None else block.downsample(x)

    def join(branch: Tensor, shortcut: Tensor) -> Tensor:
        branch += shortcut
        return activation(branch)

    return shortcut, join


def _rest(model: Any, name: str) -> Callable[[Tensor], Tensor]:
    names, every = zip(*blocks(model).items(), strict=True)
    following = every[names.index(name) + 1 :]

    def rest(x: Tensor) -> Tensor:
        for block in following:
            x = block(x)
        if isinstance(model, ClassifierHead):
            x = model.after_stages(x)
        return model.forward_head(x)

    return rest
