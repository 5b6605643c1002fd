"""``resnet10_slim``: a network of the ResNet type that a detector learns with on a CPU, from nothing, in minutes."""

from typing import Any

import timm.models.resnet
from torch import nn


def resnet10_slim(*, num_classes: int, in_channels: int) -> nn.Module:
    """timm's ResNet of one basic block per stage, 16, 32, 64 and 128 wide, with a stem of three 3x3 convolutions.

    Strides are those of ResNet-50: 4, 8, 16 and 32. 0.3 million parameters.
    """
    block: Any = timm.models.resnet.BasicBlock  # timm annotates the class as an instance
    return timm.models.resnet.ResNet(
        block,
        (1, 1, 1, 1),
        num_classes=num_classes,
        in_chans=in_channels,
        channels=(16, 32, 64, 128),
        stem_type="deep",
        stem_width=8,
        zero_init_last=False,
    )
