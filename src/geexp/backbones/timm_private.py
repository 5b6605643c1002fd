"""The forward passes of timm's residual blocks, re-stated: what comes before their last BN, and how they end.

timm's blocks are single functions. Whatever has to stop inside one, or to go on from there, finds the parts here.
"""

from collections.abc import Callable
from typing import Any

import timm.models.res2net
import timm.models.resnet
from torch import Tensor, nn

# The last BN and the last activation. Between them are the slot ``se``, ``drop_path`` and the sum.
ENDS: dict[type[nn.Module], tuple[str, str]] = {
    timm.models.resnet.BasicBlock: ("bn2", "act2"),
    timm.models.resnet.Bottleneck: ("bn3", "act3"),
    timm.models.res2net.Bottle2neck: ("bn3", "relu"),
}
# The blocks for which ``branch`` is re-stated as well.
BRANCHES: tuple[type[nn.Module], ...] = (timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck)


def branch(block: Any, x: Tensor) -> Tensor:
    """The input of the last BN, for the blocks in ``BRANCHES``."""
    is_basic = type(block) is timm.models.resnet.BasicBlock
    if is_basic:
        return block.conv2(block.aa(block.act1(block.drop_block(block.bn1(block.conv1(x))))))
    x = block.act1(block.bn1(block.conv1(x)))
    return block.conv3(block.aa(block.act2(block.drop_block(block.bn2(block.conv2(x))))))


def shortcut(block: Any, x: Tensor) -> Tensor:
    """The identity path."""
    return x if block.downsample is None else block.downsample(x)


def shortcut_and_join(
    block: nn.Module,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] | None:
    """The two halves of a block around the output of its slot, ``join(branch, shortcut(x))``; None if not timm's."""
    if type(block) not in ENDS:
        return None
    activation = getattr(block, ENDS[type(block)][1])

    def join(branch: Tensor, shortcut: Tensor) -> Tensor:
        branch += shortcut
        return activation(branch)

    return lambda x: shortcut(block, x), join
