"""The CIFAR networks: pre-activation ResNets (He et al. 2016, "Identity Mappings") and wide ResNets (Zagoruyko &
Komodakis 2016), which differ in width only.

Stages 2, 3 and 4 have full, half and quarter resolution. As in the code of both papers, the shortcut starts after the
first activation in the very first block and in blocks that change the width.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from geexp.backbones.anatomy import ClassifierHead


def resnet8(*, shortcut: str = "A", **options: Any) -> nn.Module:
    return PreActResNet(basic_block, 1, (16, 32, 64), shortcut=shortcut, **options)


def resnet20(*, shortcut: str = "A", **options: Any) -> nn.Module:
    return PreActResNet(basic_block, 3, (16, 32, 64), shortcut=shortcut, **options)


def resnet56(*, shortcut: str = "A", **options: Any) -> nn.Module:
    return PreActResNet(basic_block, 9, (16, 32, 64), shortcut=shortcut, **options)


def resnet110(*, shortcut: str = "A", **options: Any) -> nn.Module:
    return PreActResNet(basic_block, 18, (16, 32, 64), shortcut=shortcut, **options)


def resnet164(*, shortcut: str = "B", **options: Any) -> nn.Module:
    return PreActResNet(bottleneck, 18, (64, 128, 256), shortcut=shortcut, **options)


def wrn16_8(*, shortcut: str = "B", **options: Any) -> nn.Module:
    return PreActResNet(basic_block, 2, (128, 256, 512), shortcut=shortcut, **options)


class PreActBlock(nn.Module):
    """y = shortcut + GE(branch(a)), a = ReLU(BN(x)); the shortcut is x, or ``projection(a)`` if there is one.

    The branch consists of the convolutions ``convs``; all but the first are preceded by BN and ReLU.
    """

    def __init__(self, in_channels: int, convs: list[nn.Conv2d], projection: nn.Module | None) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        branch: list[nn.Module] = [convs[0]]
        for conv in convs[1:]:
            branch += [nn.BatchNorm2d(conv.in_channels), nn.ReLU(inplace=True), conv]
        self.relu = nn.ReLU(inplace=True)
        self.branch = nn.Sequential(*branch)
        self.ge: nn.Module = nn.Identity()
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(activated)
        return self.join(self.ge(self.branch(activated)), shortcut)

    def shortcut(self, x: Tensor) -> Tensor:
        """The identity path alone, as ``forward`` computes it."""
        return x if self.projection is None else self.projection(self.relu(self.bn1(x)))

    def join(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut

    def zero_init_last(self) -> None:
        """Zero the last convolution of the branch, so that the block starts as its shortcut."""
        nn.init.zeros_(self.branch[-1].weight)  # type: ignore[arg-type]


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, with ``extra`` channels of zeros appended: ``[N, C, H, W]`` → ``[N, C + extra, …]``.

    Source: option A of He et al. 2016, "Deep Residual Learning", section 4.2.
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def basic_block(in_channels: int, channels: int, stride: int) -> list[nn.Conv2d]:
    """Two 3x3 convolutions."""
    return [
        nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
    ]


def bottleneck(in_channels: int, channels: int, stride: int) -> list[nn.Conv2d]:
    """1x1 (with the stride), 3x3 and 1x1 convolutions, a quarter of the width inside."""
    inner = channels // 4
    return [
        nn.Conv2d(in_channels, inner, 1, stride, bias=False),
        nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
        nn.Conv2d(inner, channels, 1, bias=False),
    ]


class PreActResNet(ClassifierHead):
    """Images ``[N, in_channels, H, W]`` → logits ``[N, num_classes]``; ``depth`` blocks in each of three stages.

    Args:
        block: the convolutions of a block's branch, for its input width, output width and stride.
        shortcut: how shortcuts change the width: ``A``, subsampled and padded with zeros, as He et al. 2016 do with
            basic blocks on CIFAR; or ``B``, a 1x1 convolution.

    Raises:
        ValueError: for another ``shortcut``.
    """

    preactivated = True

    def __init__(
        self,
        block: Callable[[int, int, int], list[nn.Conv2d]],
        depth: int,
        widths: tuple[int, int, int],
        *,
        shortcut: str,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut={shortcut!r}: allowed are 'A' and 'B'")
        self.num_features = widths[-1]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)

        def projection(in_width: int, width: int, stride: int) -> nn.Module:
            if in_width == width:
                return nn.Identity()
            if shortcut == "A":
                return PaddedShortcut(width - in_width, stride)
            return nn.Conv2d(in_width, width, 1, stride, bias=False)

        def stage(in_width: int, width: int, stride: int) -> nn.Sequential:
            first = PreActBlock(in_width, block(in_width, width, stride), projection(in_width, width, stride))
            rest = (PreActBlock(width, block(width, width, 1), None) for _ in range(depth - 1))
            return nn.Sequential(first, *rest)

        self.layer1 = stage(16, widths[0], 1)
        self.layer2 = stage(widths[0], widths[1], 2)
        self.layer3 = stage(widths[1], widths[2], 2)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU(inplace=True)
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map after the final BN and ReLU, ``[N, num_features, H/4, W/4]``."""
        return self.after_stages(self.layer3(self.layer2(self.layer1(self.conv1(x)))))

    def after_stages(self, x: Tensor) -> Tensor:
        """The final BN and ReLU."""
        return self.relu(self.bn(x))
