"""The Gather-Excite operator: a gather and an excite (paper, section 3; SE as a special case, section 3.1)."""

import torch
from torch import Tensor, nn

from geexp.operators.excite import Excite, ExciteSubnetwork, average_excite
from geexp.operators.gather import (
    ConvGather,
    Extent,
    GlobalConvGather,
    PoolGather,
    Size,
    check_extent,
    check_implementation,
    is_channels_last,
)
from geexp.operators.torch_private import has_hooks, is_traced

VARIANTS = ("theta_minus", "theta", "theta_plus", "se")


class GatherExcite(nn.Module):
    """Gate each channel by its gathered context: ``[N, C, H, W]`` → the same shape.

    Args:
        channels: C.
        variant: ``theta_minus`` gathers by pooling, ``theta`` by depth-wise convolutions; ``theta_plus`` adds the
            excite sub-network to ``theta``; ``se`` adds it to ``theta_minus`` (Squeeze-and-Excitation if global).
        extent: extent ratio e, a power of two, at least 2, or ``"global"``.
        size: the feature map's size, (H, W) or one number; required by the parametrised global gather only.
        pool: ``avg`` or ``max`` for the variants that pool (Table 6); the others accept ``avg`` only.
        border: the divisor of averages at the border: the number of ``real`` pixels in the window, or the size of the
            ``padded`` window, as in Caffe, the authors' framework. Variants that pool only.
        reduction: r of the sub-network, C → C/r → C.
        implementation: ``reference`` composes PyTorch's own operations, ``fused`` uses our autograd Functions wherever
            they are valid, ``auto`` chooses case by case. Parameters are the same, values agree up to rounding.

    Raises:
        ValueError: for an unknown variant, extent, pool, border or implementation, a missing ``size``, or
            ``pool="max"`` or ``border="padded"`` for a variant without pooling; in ``forward``, if a global
            parametrised gather was built for another map size.
    """

    def __init__(
        self,
        channels: int,
        *,
        variant: str,
        extent: Extent,
        size: Size | int | None = None,
        pool: str = "avg",
        border: str = "real",
        reduction: int = 16,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r}: allowed are {', '.join(VARIANTS)}")
        self.channels, self.variant, self.extent = channels, variant, check_extent(extent)
        self.implementation = check_implementation(implementation)
        final_relu = variant == "theta_plus"
        self.gather: nn.Module
        if variant in ("theta_minus", "se"):
            self.gather = PoolGather(self.extent, pool, implementation, border=border)
        elif (pool, border) != ("avg", "real"):
            given = f"pool={pool!r}" if pool != "avg" else f"border={border!r}"
            raise ValueError(f"{given}: {variant} gathers by convolution, only theta_minus and se use pooling")
        elif self.extent == "global":
            if size is None:
                raise ValueError(
                    f"size is missing: {variant} with extent='global' has a kernel as large as the feature map, "
                    "so it needs size=(H, W)"
                )
            height, width = (size, size) if isinstance(size, int) else size
            self.gather = GlobalConvGather(
                channels, (height, width), final_relu=final_relu, implementation=implementation
            )
        else:
            self.gather = ConvGather(channels, self.extent, final_relu=final_relu)
        has_subnetwork = variant in ("theta_plus", "se")
        self.excite = Excite(ExciteSubnetwork(channels, reduction) if has_subnetwork else None, implementation)

    def forward(self, x: Tensor) -> Tensor:
        if self._in_one_sweep(x):
            return average_excite(x)
        return self.excite(x, self.gather(x))

    @property
    def is_global(self) -> bool:
        """Whether each channel has one gate, from its average or from a depth-wise convolution of the map's size."""
        gather = self.gather
        is_average = isinstance(gather, PoolGather) and (gather.extent, gather.pool) == ("global", "avg")
        return isinstance(self.excite, Excite) and (is_average or isinstance(gather, GlobalConvGather))

    @property
    def gathers_linearly(self) -> bool:
        """Whether each gathered value is a weighted sum, or a function of such sums: all but max pooling."""
        return isinstance(self.excite, Excite) and getattr(self.gather, "pool", "avg") == "avg"

    @property
    def is_global_average(self) -> bool:
        """Whether this is GE-θ⁻ by global average pooling: the gate is the sigmoid of each channel's mean."""
        gather = self.gather
        return (
            self.variant == "theta_minus"
            and isinstance(gather, PoolGather)
            and (self.extent, gather.extent, gather.pool) == ("global", "global", "avg")
        )

    def _in_one_sweep(self, x: Tensor) -> bool:
        if self.implementation == "reference" or not self.is_global_average:
            return False
        if not (x.requires_grad and torch.is_grad_enabled()) or is_traced(x) or has_hooks(self):
            return False
        return self.implementation == "fused" or not _slow_addcmul(x)

    def gate(self, x: Tensor) -> Tensor:
        """The gate's values on the gathered grid: ``[N, C, H, W]`` → ``[N, C, ⌈H/e⌉, ⌈W/e⌉]``, each in (0, 1)."""
        return self.excite.transform(self.gather(x)).sigmoid()

    def extra_repr(self) -> str:
        return f"{self.channels}, variant={self.variant}, extent={self.extent}"


def _slow_addcmul(x: Tensor) -> bool:
    """Whether ``addcmul`` is slow here: in half precision on a CPU, except in channels_last.

    Forward + backward in bf16 at 56² (N=8, C=256, one thread of an EPYC 9004) takes 9.9 ms with separate operations and
    18.8 ms in one sweep; in channels_last 32.6 ms and 12.3 ms.
    """
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) and not is_channels_last(x)
