"""ShuffleNet v1, 1x, 3 groups (Zhang et al. 2018): the paper's mobile network, Table 4.

Stages 2, 3 and 4 have 4, 8 and 4 units of 240, 480 and 960 channels. A unit's bottleneck is a quarter of its output
width; only the first 1x1 convolution of the network is not grouped. 137.5 MMACs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.backbones.anatomy import ClassifierHead

GROUPS = 3


def shufflenet_g3(**options: Any) -> nn.Module:
    return ShuffleNet(**options)


class ShuffleUnit(nn.Module):
    """1x1 group convolution, channel shuffle, 3x3 depth-wise, 1x1 group convolution, joined with the shortcut.

    With stride 1 the branch is added to x. With stride 2 it has ``channels - in_channels`` outputs and is concatenated
    with x averaged over 3x3; there GE follows the concatenation and acts on the full output width, the only reading
    that gives the paper's MFLOPs for SE, GE-θ and GE-θ⁺.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, first_groups: int = GROUPS) -> None:
        super().__init__()
        inner = channels // 4
        branch_channels = channels if stride == 1 else channels - in_channels
        self.concatenates = stride == 2
        self.conv1 = nn.Conv2d(in_channels, inner, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, branch_channels, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch_channels)
        self.relu = nn.ReLU(inplace=True)
        self.ge: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = channel_shuffle(self.relu(self.bn1(self.conv1(x))), GROUPS)
        branch = self.bn2(self.conv2(branch))
        branch = self.bn3(self.conv3(branch))
        if not self.concatenates:
            return self.join(self.ge(branch), self.shortcut(x))
        shortcut = F.avg_pool2d(x, 3, stride=2, padding=1)
        return self.relu(self.ge(torch.cat([shortcut, branch], dim=1)))

    def shortcut(self, x: Tensor) -> Tensor:
        """The identity path; used, like ``join``, by units that do not concatenate."""
        return x

    def join(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return self.relu(branch + shortcut)

    def zero_init_last(self) -> None:
        """Zero the branch's last BN weight, unless the unit concatenates: concatenated zeros would never learn."""
        if not self.concatenates:
            nn.init.zeros_(self.bn3.weight)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """``F.channel_shuffle``, which on CUDA turns channels_last memory into contiguous memory; this keeps it."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return F.channel_shuffle(x, groups)
    return x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


class ShuffleNet(ClassifierHead):
    """Images ``[N, in_channels, H, W]`` → logits ``[N, num_classes]``."""

    num_features = 960

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._stage(24, 240, 4, first_groups=1)
        self.layer2 = self._stage(240, 480, 8)
        self.layer3 = self._stage(480, 960, 4)
        self.reset_classifier(num_classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, units: int, *, first_groups: int = GROUPS) -> nn.Sequential:
        first = ShuffleUnit(in_channels, channels, 2, first_groups=first_groups)
        return nn.Sequential(first, *(ShuffleUnit(channels, channels, 1) for _ in range(units - 1)))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map, ``[N, 960, H/32, W/32]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer3(self.layer2(self.layer1(x)))
