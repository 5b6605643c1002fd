"""The tail of a residual block as one operator: relu(shortcut + GE(BN(branch))) for GE-θ⁻ of finite extent.

One operation after the other keeps the branch for BN and the normalised branch for the excite, of which the second is
an affine function of the first: backward makes it anew. What else it needs is as small as the gathered grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.operators.excite import cell_sum, excite, scale
from geexp.operators.gather import PoolGather, average_windows, average_windows_adjoint, is_channels_last
from geexp.operators.tail import differentiable_backward, next_share


def finite_average_excite_tail(norm: nn.BatchNorm2d, branch: Tensor, shortcut: Tensor, extent: int) -> Tensor:
    """``relu(shortcut + y · σ(y averaged))``, y = ``norm(branch)``, its running statistics kept as it keeps them.

    Args:
        norm: with weight and bias, in training or not; see ``takes_tail``.
        branch, shortcut: ``[N, C, H, W]`` of one dtype, both contiguous or both channels_last.
        extent: e. Averaged as by ``PoolGather``, the gate resized as by ``excite``.

    Returns:
        ``[N, C, H, W]``, like the branch. Backward keeps the branch, this and ``[N, C, ⌈H/e⌉, ⌈W/e⌉]``. It can be
        differentiated twice, at the plain composition's cost.
    """
    on_batch = norm.training or norm.running_mean is None
    share = next_share(norm) if norm.training and norm.running_mean is not None else 0.0
    mean, var = norm.running_mean, norm.running_var
    return _FiniteTail.apply(branch, shortcut, norm.weight, norm.bias, mean, var, on_batch, share, norm.eps, extent)


class _FiniteTail(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        shortcut: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        on_batch: bool,
        share: float,
        eps: float,
        extent: int,
    ) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            y, batch_mean, inverse = torch.native_batch_norm(z, weight, bias, mean, var, on_batch, share, eps)
            gate = torch.sigmoid(average_windows(y, extent))
            out = scale(y, gate)
            out += shortcut
            out.relu_()
        if on_batch:  # the running statistics may change before backward
            mean = var = None
        ctx.eps, ctx.extent = eps, extent
        ctx.save_for_backward(z, out, weight, bias, mean, var, batch_mean, inverse, gate)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 6
        if torch.is_grad_enabled():
            gather = PoolGather(ctx.extent, implementation="reference")
            saved = ctx.saved_tensors[:6]
            return *differentiable_backward(saved, ctx.eps, grads[0], lambda y: excite(y, gather(y))), *nothing
        z, out, weight, bias, mean, var, batch_mean, inverse, gate = ctx.saved_tensors
        layout = torch.channels_last if is_channels_last(z) else torch.contiguous_format
        grad_sum = torch.ops.aten.threshold_backward(grads[0].contiguous(memory_format=layout), out, 0)
        of_z, _, of_weight, of_bias = ctx.needs_input_grad[:4]
        if not (of_z or of_weight or of_bias):
            return None, grad_sum, None, None, *nothing
        with torch.autocast(z.device.type, enabled=False):
            centre, spread = (batch_mean, inverse**-2 - ctx.eps) if mean is None else (mean, var)
            y = F.batch_norm(z, centre, spread, weight, bias, training=False, eps=ctx.eps)
            grad_gathered = cell_sum(y.mul_(grad_sum), gate.shape[2], gate.shape[3]) * gate * (1 - gate)
            grad_y = scale(grad_sum, gate)
            grad_y += average_windows_adjoint(grad_gathered, z, ctx.extent)
            of_norm = torch.ops.aten.native_batch_norm_backward(
                grad_y, z, weight, mean, var, batch_mean, inverse, mean is None, ctx.eps, [of_z, of_weight, of_bias]
            )
        return of_norm[0], grad_sum, *of_norm[1:], *nothing
