"""The end of a residual block: BN, Gather-Excite, the sum with the shortcut, ReLU."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from geexp.benchmarks.contenders import RepairedTimm
from geexp.operators import GatherExcite, average_excite_tail
from geexp.operators.gather import Extent


class EagerTail(nn.Module):
    """One operation after the other, sum and ReLU in place, as in timm's blocks: z, shortcut ``[N,C,H,W]`` → same."""

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
    """All of it in one, which there is for GE-θ⁻ of global extent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, z: Tensor, shortcut: Tensor) -> Tensor:
        return average_excite_tail(self.bn, z, shortcut)


def tails(channels: int, *, variant: str, extent: Extent, size: tuple[int, int]) -> dict[str, nn.Module]:
    """Ours in one, without any operator, with timm's, and with ours one after the other."""
    options: dict[str, Any] = {"variant": variant, "extent": extent, "size": size}
    fused = {"fused": FusedTail(channels)} if (variant, extent) == ("theta_minus", "global") else {}
    return {
        **fused,
        "plain": EagerTail(channels, None),
        "timm": EagerTail(channels, RepairedTimm(channels, **options)),
        "unfused": EagerTail(channels, GatherExcite(channels, **options)),
    }
