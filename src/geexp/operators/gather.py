"""Gather: aggregate each channel over a spatial extent (paper, section 3).

Every gather maps ``[N, C, H, W]`` to ``[N, C, ⌈H/e⌉, ⌈W/e⌉]``, or to ``[N, C, 1, 1]`` when its extent is global.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.operators.torch_private import is_traced

Extent = int | Literal["global"]
Size = tuple[int, int]
IMPLEMENTATIONS = ("auto", "reference", "fused")


def check_implementation(implementation: object) -> str:
    """Return ``implementation`` if it is one of ``IMPLEMENTATIONS``; they differ in speed and memory only.

    ``reference`` composes PyTorch's own operations, ``fused`` uses our autograd Functions wherever they are valid, and
    ``auto`` uses the one that was measured to be faster in the given case. Results agree up to rounding.

    Raises:
        ValueError: for anything else; the message lists the allowed values.
    """
    if isinstance(implementation, str) and implementation in IMPLEMENTATIONS:
        return implementation
    raise ValueError(f"implementation={implementation!r}: allowed are {', '.join(map(repr, IMPLEMENTATIONS))}")


def check_extent(extent: object) -> Extent:
    """Return ``extent`` if it is ``"global"`` or a power of two, at least 2.

    Raises:
        ValueError: for anything else; the message lists the allowed values.
    """
    if extent == "global":
        return "global"
    if isinstance(extent, int) and not isinstance(extent, bool) and extent >= 2 and extent.bit_count() == 1:
        return extent
    raise ValueError(f"extent={extent!r}: allowed are 2, 4, 8 (any power of two from 2 on) and 'global'")


class PoolGather(nn.Module):
    """The parameter-free gather: average or max pooling (GE-θ⁻, SE if the extent is global; max pooling in Table 6).

    Extent e means windows of 2e-1 pixels, stride e and padding e-1. At the border, averages divide by the number of
    ``real`` pixels in the window or by the size of the ``padded`` window, as Caffe's average pooling does.
    """

    def __init__(
        self, extent: Extent, pool: str = "avg", implementation: str = "auto", *, border: str = "real"
    ) -> None:
        super().__init__()
        if pool not in ("avg", "max"):
            raise ValueError(f"pool={pool!r}: allowed are 'avg' and 'max'")
        if border not in ("real", "padded"):
            raise ValueError(f"border={border!r}: allowed are 'real' and 'padded'")
        self.extent = check_extent(extent)
        self.pool, self.border = pool, border
        self.implementation = check_implementation(implementation)

    def forward(self, x: Tensor) -> Tensor:
        if self.extent == "global":
            # amax rather than adaptive max pooling: its backward is deterministic on CUDA.
            return x.mean((2, 3), keepdim=True) if self.pool == "avg" else x.amax((2, 3), keepdim=True)
        if self.pool == "max":
            return F.max_pool2d(x, *windows_of(self.extent))
        if self.implementation != "reference" and _matrices_pay(x, self.extent):
            return _PoolByMatrices.apply(x, self.extent, self.border)
        return F.avg_pool2d(x, *windows_of(self.extent), count_include_pad=self.border == "padded")

    def extra_repr(self) -> str:
        return f"extent={self.extent}, pool={self.pool}, border={self.border}"


def windows_of(extent: int) -> tuple[int, int, int]:
    """Window, stride and padding of a finite extent."""
    return 2 * extent - 1, extent, extent - 1


def gathered_size(size: Size, extent: int) -> Size:
    """The grid of a finite extent on a map of this size: (⌈H/e⌉, ⌈W/e⌉)."""
    return -(-size[0] // extent), -(-size[1] // extent)


def _matrices_pay(x: Tensor, extent: int) -> bool:
    """Whether averaging windows by two matrix products (rows, then columns) is faster than ``avg_pool2d``.

    Forward + backward at 56² with e = 2, 4, 8 (N=8, C=256, float32, one thread of an EPYC 9004) takes 27, 14 and 10 ms
    as products and 30, 20 and 17 ms with ``avg_pool2d``. Small maps are slower as products: at 14² with e=8, a grid of
    2 rows, 11 ms against 3 ms, and 7² always. In channels_last ``avg_pool2d`` is nearly as fast as a copy, and in bf16
    the matrices would be rounded.
    """
    rows, columns = -(-x.shape[2] // extent), -(-x.shape[3] // extent)
    return (
        not is_traced(x)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and min(rows, columns) >= 4
        and min(x.shape[2:]) >= 14
        and x.is_contiguous()
    )


class _PoolByMatrices(torch.autograd.Function):
    """``R · x · Cᵀ``, with R and C averaging along the two axes.

    Saves nothing for backward; autograd would save R once per plane.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, extent: int, border: str) -> Tensor:
        ctx.size, ctx.extent, ctx.border = x.shape[2:], extent, border
        rows, columns = (_averaging(size, extent, border, x) for size in ctx.size)
        return rows @ x @ columns.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        rows, columns = (_averaging(size, ctx.extent, ctx.border, grad) for size in ctx.size)
        return rows.T @ (grad @ columns), None, None


def _averaging(size: int, extent: int, border: str, like: Tensor) -> Tensor:
    """The matrix ``[⌈size/e⌉, size]`` whose row i averages the pixels less than e away from pixel e·i."""
    centres = torch.arange(0, size, extent, device=like.device)
    near = ((torch.arange(size, device=like.device) - centres[:, None]).abs() < extent).to(like.dtype)
    return near / (near.sum(1, keepdim=True) if border == "real" else 2 * extent - 1)


class ConvGather(nn.Sequential):
    """The parametrised gather of a finite extent (GE-θ, GE-θ⁺): log2(e) depth-wise 3x3 convolutions of stride 2.

    Each is followed by batch normalisation, and all but the last by a ReLU; ``final_relu`` adds the last one, as in
    GE-θ⁺. The number of convolutions follows the paper's diagram and the sizes in Table 4; the text says e/2.
    """

    def __init__(self, channels: int, extent: int, *, final_relu: bool = False) -> None:
        if check_extent(extent) == "global":
            raise ValueError("extent='global': a chain of convolutions has a finite extent; use GlobalConvGather")
        steps = extent.bit_length() - 1
        layers: list[nn.Module] = []
        for step in range(steps):
            layers += [
                nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
                BatchNorm(channels),
            ]
            if step < steps - 1 or final_relu:
                layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)
        init_gather(self)


class DepthwiseProduct(nn.Conv2d):
    """A depth-wise convolution with a kernel as large as its input, computed as one product and one sum per channel.

    ``[N, C, H, W]`` → ``[N, C, 1, 1]``, weight ``[C, 1, H, W]``. It takes one pass over memory; the depth-wise kernels
    of cuDNN and oneDNN are optimised for small windows.

    Raises:
        ValueError: in ``forward``, for a map of another size.
    """

    def __init__(self, channels: int, size: Size, implementation: str = "auto") -> None:
        super().__init__(channels, channels, size, groups=channels, bias=False)
        self.implementation = check_implementation(implementation)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (self.in_channels, *self.kernel_size):
            expected = "x".join(map(str, self.kernel_size))
            raise ValueError(
                f"this global gather was built for {self.in_channels} channels of {expected}, but the input has "
                f"{x.shape[1]} channels of {x.shape[2]}x{x.shape[3]}: the kernel is as large as the feature map. Build "
                "it for this image size, or use a finite extent or GE-θ⁻, which accept any size"
            )
        if self._by_convolution(x):
            return super().forward(x)
        # Under autocast the weight is float32. Cast it as a convolution does, to keep the product in x's dtype.
        weight = self.weight.transpose(0, 1).to(x.dtype)
        if is_channels_last(x):
            weight = weight.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() and not is_traced(x):
            return _PlaneDot.apply(x, weight)
        return (x * weight).sum((2, 3), keepdim=True)

    def _by_convolution(self, x: Tensor) -> bool:
        if self.implementation != "auto":
            return self.implementation == "reference"
        # In channels_last oneDNN's forward is faster, 8.1 against 10.1 ms at 56² (N=8, C=256, float32, one thread of an
        # EPYC 9004), but its forward + backward is slower, 195 against 51 ms.
        return x.device.type == "cpu" and is_channels_last(x) and not torch.is_grad_enabled()


class _PlaneDot(torch.autograd.Function):
    """``(x · weight).sum`` over each plane, ``[N, C, H, W]`` and ``[1, C, H, W]`` → ``[N, C, 1, 1]``.

    A custom Function for a faster gradient of the weight: at 56² in channels_last (N=8, C=256, float32, one thread of
    an EPYC 9004) autograd's sum over the images takes 22 ms, a sum in memory order 3.4 ms, image by image 1.6 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return (x * weight).sum((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0].to(x.dtype)  # autocast computes the sum in float32
        grad_x = grad * weight if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        return grad_x, _sum_over_images(grad, x)


def _sum_over_images(grad: Tensor, x: Tensor) -> Tensor:
    """``(grad · x).sum(0)`` for ``[N, C, 1, 1]`` and ``[N, C, H, W]``, in x's memory format: ``[1, C, H, W]``."""
    exact = x.dtype in (torch.float32, torch.float64)  # in half precision the running total would be rounded N times
    if exact and x.device.type == "cpu" and not torch.is_grad_enabled():
        total = grad[:1] * x[:1]
        for image in range(1, len(x)):
            total.addcmul_(grad[image], x[image])
        return total
    if is_channels_last(x):
        return (grad.permute(0, 2, 3, 1) * x.permute(0, 2, 3, 1)).sum(0, keepdim=True).permute(0, 3, 1, 2)
    return (grad * x).sum(0, keepdim=True)


class GlobalConvGather(nn.Sequential):
    """The parametrised gather of global extent (GE-θ, GE-θ⁺): a depth-wise convolution of the map's size, then BN.

    ``size`` is the feature map's (H, W), the only size that the module accepts.
    """

    def __init__(self, channels: int, size: Size, *, final_relu: bool = False, implementation: str = "auto") -> None:
        layers: list[nn.Module] = [DepthwiseProduct(channels, size, implementation), BatchNorm(channels)]
        if final_relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)
        init_gather(self)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of gathered maps, with the paper's momentum (moving average factor 0.95).

    Raises:
        ValueError: in ``forward``, in training, if the batch holds a single value per channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.05)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            raise ValueError(
                "the gathered map is 1x1 and the batch holds one image, so batch normalisation has nothing to "
                "normalise over: train with at least two images per device, or put the module in eval mode"
            )
        return super().forward(input)


def init_gather(module: nn.Module) -> None:
    """He normal by fan-in for all convolutions (fan-out would be √C too small for depth-wise kernels)."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_in", nonlinearity="relu")


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
