"""ResNets made of timm's blocks: ResNet-50/101/152 as in the paper, a small one, and any other by its timm name.

The paper uses the first version of the bottleneck, with the stride on the first 1x1 convolution; timm and torchvision
have it on the 3x3 ("v1.5"), which costs 4.09 instead of 3.86 GFLOPs for ResNet-50. Parameter names are those of timm
and torchvision, so their weights load into either version.
"""

from difflib import get_close_matches
from typing import Any

import timm
import timm.models.resnet
from torch import nn

from geexp.backbones.anatomy import blocks, slot, stages

# timm annotates the classes as instances.
_BasicBlock: Any = timm.models.resnet.BasicBlock
_Bottleneck: Any = timm.models.resnet.Bottleneck


def resnet50(**options: Any) -> nn.Module:
    return _resnet((3, 4, 6, 3), **options)


def resnet101(**options: Any) -> nn.Module:
    return _resnet((3, 4, 23, 3), **options)


def resnet152(**options: Any) -> nn.Module:
    return _resnet((3, 8, 36, 3), **options)


def _resnet(
    layers: tuple[int, int, int, int], *, num_classes: int, in_channels: int, stride_in: str = "1x1"
) -> nn.Module:
    """``stride_in`` is ``1x1`` (v1, the paper's) or ``3x3`` (v1.5)."""
    if stride_in not in ("1x1", "3x3"):
        raise ValueError(f"stride_in={stride_in!r}: allowed are '1x1' and '3x3'")
    model = timm.models.resnet.ResNet(
        _Bottleneck, layers, num_classes=num_classes, in_chans=in_channels, zero_init_last=False
    )
    if stride_in == "1x1":
        for number in (3, 4, 5):
            first: Any = stages(model)[number][0]
            first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
    return model


def resnet10_slim(*, num_classes: int, in_channels: int) -> nn.Module:
    """One basic block per stage, 16, 32, 64 and 128 wide, with a stem of three 3x3 convolutions; strides 4 to 32.

    It has 0.3 million parameters; a detector on it trains from scratch on a CPU in minutes.
    """
    return timm.models.resnet.ResNet(
        _BasicBlock,
        (1, 1, 1, 1),
        num_classes=num_classes,
        in_chans=in_channels,
        channels=(16, 32, 64, 128),
        stem_type="deep",
        stem_width=8,
        zero_init_last=False,
    )


def timm_resnet(*, arch: str, num_classes: int, in_channels: int) -> nn.Module:
    """An untrained network of timm's ResNet family by its timm name, such as ``resnext50_32x4d``.

    Raises:
        ValueError: for a name unknown to timm, or a network whose blocks have no slot for GE.
    """
    if not timm.is_model(arch):
        near = get_close_matches(arch, timm.list_models(), n=3)
        raise ValueError(f"arch={arch}: timm has no such network" + (f"; near are {', '.join(near)}" if near else ""))
    model = timm.create_model(arch, num_classes=num_classes, in_chans=in_channels)
    for block in blocks(model).values():
        slot(block)
    return model
