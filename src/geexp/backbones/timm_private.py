"""The forward passes of timm's residual blocks in two parts, split before the last BN.

timm's forward is a single function; code that must stop inside a block, or continue from there, uses these parts.
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
# The blocks that ``branch`` supports.
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
    """The functions ``shortcut(x)`` and ``join(branch, shortcut)`` of a block of timm's; None for any other block."""
    if type(block) not in ENDS:
        return None
    activation = getattr(block, ENDS[type(block)][1])

    def join(branch: Tensor, shortcut: Tensor) -> Tensor:
        branch += shortcut
        return activation(branch)

    return lambda x: shortcut(block, x), join
