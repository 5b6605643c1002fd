"""The tail of a residual block by Triton kernels where the gather has a finite extent.

A window's average of BN's result, and the first depth-wise convolution of a parametrised gather, are affine functions
of the same sums over the branch. So forward makes 5 passes over full-size tensors - BN's statistics, the sums over
windows, and the 3 of the result - and backward 7, or 8 with the convolution's weight; what follows on the gathered map
is left to PyTorch. A maximum is not affine, so max pooling has no kernels.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.operators.gather import ConvGather, PoolGather, Size, gathered_size, windows_of
from geexp.operators.gather_excite import GatherExcite
from geexp.operators.tail.compiled import differentiable_backward
from geexp.operators.tail.launch import Kernels, WindowKernels
from geexp.operators.tail.network import back_through, network_of, through


class WindowTail(torch.autograd.Function):
    """``relu(shortcut + operator(norm(z)))``; ``parameters`` are the operator's."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        shortcut: Tensor,
        gamma: Tensor,
        beta: Tensor,
        norm: nn.BatchNorm2d,
        operator: GatherExcite,
        *parameters: Tensor,
    ) -> Tensor:
        on_batch = norm.training or norm.running_mean is None
        statistics = Kernels(z, weighted=False, on_batch=on_batch)
        mean, inverse, *_ = statistics.normalise(norm, gamma, beta, None, None)
        kernels = _kernels(operator, z, on_batch=on_batch)
        taps, whole = _weights(operator, z, parameters)
        gathered = _grid(z, kernels.windows)
        plane = torch.empty_like(gathered)
        kernels.call("gather_windows", z, taps, whole, gamma, beta, mean, inverse, plane, gathered)
        ctx.graph, logits = None, gathered
        if (network := network_of(operator)) is not None:
            ctx.graph = through(network, parameters[taps is not None :], gathered, z)
            logits = ctx.graph[-1].detach().contiguous(memory_format=_format(z))
        out = torch.empty_like(z)
        kernels.call("join_cells", z, shortcut, logits, gamma, beta, mean, inverse, out)
        ctx.operator, ctx.eps = operator, norm.eps
        frozen = (None, None) if on_batch else (norm.running_mean, norm.running_var)
        ctx.save_for_backward(z, out, gamma, beta, *frozen, mean, inverse, taps, whole, plane, logits, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, out, gamma, beta, frozen_mean, _, mean, inverse, taps, whole, plane, logits, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            first, rest = differentiable_backward(ctx.saved_tensors[:6], ctx.eps, grads[0], ctx.operator, parameters)
            return *first, None, None, *rest
        kernels = _kernels(ctx.operator, z, on_batch=frozen_mean is None)
        grad = grads[0].contiguous(memory_format=_format(z))
        grad_sum, grad_z, of_gathered = torch.empty_like(z), torch.empty_like(z), torch.empty_like(logits)
        known = gamma, beta, mean, inverse
        by_gates, by_windows = map(kernels.partial_sums, ("split_gradient_cells", "sum_gathered"))
        kernels.call("split_gradient_cells", grad, out, z, logits, *known, grad_sum, of_gathered, *by_gates)
        of_parameters: list[Tensor | None] = []
        if ctx.graph is not None:
            of_gathered, of_parameters = back_through(ctx.graph, of_gathered)
            of_gathered = of_gathered.contiguous(memory_format=_format(z))
        kernels.call("sum_gathered", of_gathered, plane, whole, *by_windows)
        of_beta, of_gamma = by_gates.sum((1, 2)) + by_windows.sum((1, 2))
        of_gamma *= inverse
        given = grad_sum, z, taps, logits, of_gathered, *known, of_gamma, of_beta
        kernels.call("branch_gradient_windows", *given, grad_z, kernels.N)
        if taps is not None:
            size = kernels.images_of_group
            of_taps = mean.new_empty(-(-kernels.N // size), 16, kernels.C)
            kernels.call("weight_gradient_windows", of_gathered, z, *known, of_taps, kernels.N, size)
            weight = parameters[0]
            of_parameters.insert(0, of_taps.sum(0)[:9].t().reshape(weight.shape).to(weight.dtype))
        return grad_z, grad_sum, of_gamma.to(gamma.dtype), of_beta.to(beta.dtype), None, None, *of_parameters


def _kernels(operator: GatherExcite, z: Tensor, *, on_batch: bool) -> WindowKernels:
    gather, size = operator.gather, (z.shape[2], z.shape[3])
    weighted = isinstance(gather, ConvGather)
    extent = 2 if weighted else int(operator.extent)  # convolutions of stride 2 follow each other
    padded = isinstance(gather, PoolGather) and gather.border == "padded"
    windows, cells = gathered_size(size, extent), gathered_size(size, int(operator.extent))
    return WindowKernels(z, extent, windows, cells, weighted=weighted, padded=padded, on_batch=on_batch)


def _weights(operator: GatherExcite, z: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, Tensor]:
    """A convolution's weight as ``[9, C]``, in z's dtype; the sum of each window's weights, as an image in memory."""
    kind, extent = torch.promote_types(z.dtype, torch.float32), int(operator.extent)
    C, H, W = z.shape[1:]
    taps = None
    if isinstance(operator.gather, ConvGather):
        taps = (
            parameters[0].detach().to(z.dtype).flatten(1).t().contiguous()
        )  # as a convolution casts it under autocast
        real = _real_pixels(H, W, 2, z.device)
        whole = (real[:, :, None] * taps[:, None, :].to(kind)).sum(0)
    elif operator.gather.border == "padded":
        whole = _real_pixels(H, W, extent, z.device).to(kind).mean(0)[:, None].expand(-1, C)
    else:
        whole = torch.ones((math.prod(gathered_size((H, W), extent)), C), dtype=kind, device=z.device)
    return taps, (whole.t() if z.is_contiguous() else whole).contiguous()


@functools.cache
def _real_pixels(H: int, W: int, extent: int, device: torch.device) -> Tensor:
    """1 for each pixel of each window that is within the map, else 0: ``[(2e-1)², windows]``."""
    size, stride, padding = windows_of(extent)
    ones = torch.ones((1, 1, H, W), device=device)
    return F.unfold(ones, size, stride=stride, padding=padding)[0]


def _grid(z: Tensor, size: Size) -> Tensor:
    return torch.empty((*z.shape[:2], *size), dtype=z.dtype, device=z.device, memory_format=_format(z))


def _format(z: Tensor) -> torch.memory_format:
    return torch.contiguous_format if z.is_contiguous() else torch.channels_last
