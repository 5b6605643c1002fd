"""Gather-Excite as others write it, for comparison with ours.

Every module takes ``[N, C, H, W]`` and returns the same shape. Where an operator of theirs is not ours, its docstring
says so; what is measured against it is then the price of a like thing, not of the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.create_conv2d import create_conv2d
from timm.layers.gather_excite import GatherExcite as TimmGatherExcite
from timm.layers.mlp import ConvMlp
from torch import Tensor, nn

from geexp.operators.gather import Extent

CONVOLVING = ("theta", "theta_plus")
_REDUCTION = 16


class RepairedTimm(TimmGatherExcite):
    """timm's module, put together as its constructor means to.

    timm 1.0.31 builds GE-θ⁻ without MLP only: for the rest its constructor raises TypeError (``*dd`` for ``**dd``), so
    gather and MLP are put in here, as in its source. The forward pass is timm's own.

    One thing differs: timm pads the global convolution on all sides, so that its result is as large as the map and not
    1x1, another operator and tens of times slower. Here it goes without padding, as in the paper. What timm leaves
    out, a ReLU before the MLP of GE-θ⁺, is left out.
    """

    def __init__(self, channels: int, *, variant: str, extent: Extent, size: tuple[int, int]) -> None:
        super().__init__(channels, extent=0 if extent == "global" else extent, use_mlp=False)
        if variant in CONVOLVING:
            self.gather = nn.Sequential()
            if extent == "global":
                conv = create_conv2d(channels, channels, size, stride=1, depthwise=True, padding=0)
                self.gather.extend([conv, nn.BatchNorm2d(channels)])
            else:
                steps = int(extent).bit_length() - 1
                for step in range(steps):
                    conv = create_conv2d(channels, channels, 3, stride=2, depthwise=True)
                    self.gather.extend([conv, nn.BatchNorm2d(channels)])
                    if step < steps - 1:
                        self.gather.append(nn.ReLU(inplace=True))
        if variant in ("theta_plus", "se"):
            self.mlp = ConvMlp(channels, channels // _REDUCTION, act_layer=nn.ReLU)


class BayesWatchStyle(nn.Module):
    """As in BayesWatch's public reproduction: adaptive pooling or strided depth-wise convolutions, the gate resized to
    full resolution, global or not, and only then the sigmoid.

    Its pooling is another operator: disjoint windows on a grid of ⌊H/e⌋, where the paper's overlap on one of ⌈H/e⌉.
    """

    def __init__(self, channels: int, *, variant: str, extent: Extent, size: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if variant not in CONVOLVING:
            grid = (1, 1) if extent == "global" else (size[0] // extent, size[1] // extent)
            layers = [nn.AdaptiveAvgPool2d(grid)]
        elif extent == "global":
            layers = [nn.Conv2d(channels, channels, size, groups=channels, bias=False), nn.BatchNorm2d(channels)]
        else:
            for _ in range(int(extent).bit_length() - 1):
                conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
                layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            layers.pop()
        if variant in ("theta_plus", "se"):
            hidden = channels // _REDUCTION
            layers += [nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)]
        self.gather = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.interpolate(self.gather(x), x.shape[2:]))


def others(channels: int, *, variant: str, extent: Extent, size: tuple[int, int]) -> dict[str, nn.Module]:
    """Those that have such an operator. Without its padding timm's global GE-θ is the plain depth-wise convolution,
    and called so."""
    as_convolution = variant in CONVOLVING and extent == "global"
    options: dict[str, Any] = {"variant": variant, "extent": extent, "size": size}
    found: dict[str, nn.Module] = {"convolution" if as_convolution else "timm": RepairedTimm(channels, **options)}
    if variant in CONVOLVING or extent == "global" or min(size) >= extent:
        found["bayeswatch"] = BayesWatchStyle(channels, **options)
    return found
