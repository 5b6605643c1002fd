"""Other implementations of Gather-Excite, and the tail of a residual block with each of them.

Operators map ``[N, C, H, W]`` to the same shape. Docstrings state differences from geexp's operators.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.create_conv2d import create_conv2d
from timm.layers.gather_excite import GatherExcite as TimmGatherExcite
from timm.layers.mlp import ConvMlp
from torch import Tensor, nn

import geexp.operators
from geexp.operators import GatherExcite, average_excite_tail
from geexp.operators.gather import Extent

CONVOLVING = ("theta", "theta_plus")
OTHERS = ("timm", "convolution", "bayeswatch")
_REDUCTION = 16


class RepairedTimm(TimmGatherExcite):
    """timm's module with gather and MLP as intended by its constructor; the forward pass is timm's.

    In timm 1.0.31 the constructor raises TypeError (``*dd`` for ``**dd``) for all but GE-θ⁻ without MLP.

    One difference: timm pads the global convolution on all sides, so that its output is as large as the map instead of
    1x1, which is a different operator and tens of times slower. Here it has no padding, as in the paper. As in timm,
    there is no ReLU before the MLP of GE-θ⁺.
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
    """As in BayesWatch's public reproduction: adaptive pooling or strided depth-wise convolutions, a gate that is
    always resized to full resolution, and the sigmoid last.

    Its pooling differs from the paper: disjoint windows on a ⌊H/e⌋ grid instead of overlapping ones on a ⌈H/e⌉ grid.
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
    """The other implementations that support these arguments.

    timm's global GE-θ, without its padding, is the plain depth-wise convolution and is called ``convolution``.
    """
    options: dict[str, Any] = {"variant": variant, "extent": extent, "size": size}
    name = "convolution" if variant in CONVOLVING and extent == "global" else "timm"
    found: dict[str, nn.Module] = {name: RepairedTimm(channels, **options)}
    if variant in CONVOLVING or extent == "global" or min(size) >= extent:
        found["bayeswatch"] = BayesWatchStyle(channels, **options)
    return found


class EagerTail(nn.Module):
    """BN, operator, sum, ReLU one after the other, the last two in place: z, shortcut ``[N, C, H, W]`` → same."""

    def __init__(self, channels: int, operator: nn.Module | None) -> None:
        super().__init__()
        self.bn, self.operator = nn.BatchNorm2d(channels), operator

    def forward(self, z: Tensor, shortcut: Tensor) -> Tensor:
        x = self.bn(z)
        if self.operator is not None:
            x = self.operator(x)
        x += shortcut
        return F.relu(x, inplace=True)


class FusedTail(nn.Module):
    """The same as one operator: kernels on a GPU; compiled on a CPU, for GE-θ⁻ of global extent only."""

    def __init__(self, channels: int, operator: GatherExcite) -> None:
        super().__init__()
        self.bn, self.operator = nn.BatchNorm2d(channels), operator

    def forward(self, z: Tensor, shortcut: Tensor) -> Tensor:
        if z.is_cuda:
            return geexp.operators.gather_excite_tail(self.operator, self.bn, z, shortcut)
        return average_excite_tail(self.bn, z, shortcut)


def tails(
    channels: int, *, variant: str, extent: Extent, size: tuple[int, int], device: str = "cpu"
) -> dict[str, nn.Module]:
    """The tail fused (if possible), without operator, with timm's operator, and with ours unfused."""
    options: dict[str, Any] = {"variant": variant, "extent": extent, "size": size}
    found: dict[str, nn.Module] = {}
    if device == "cuda" or (variant, extent) == ("theta_minus", "global"):
        found["fused"] = FusedTail(channels, GatherExcite(channels, **options))
    found["plain"] = EagerTail(channels, None)
    found["timm"] = EagerTail(channels, RepairedTimm(channels, **options))
    found["unfused"] = EagerTail(channels, GatherExcite(channels, **options))
    return found
