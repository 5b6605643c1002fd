"""The tail of a residual block by Triton kernels where the gather has a global extent.

Forward makes 4 passes over full-size tensors (read the branch; read branch and shortcut, write the result), backward 7
(read gradient, result and branch, write the shortcut's gradient; read that and the branch, write the branch's), as the
tail of a block without Gather-Excite would. The gathered values are known after the first sweep, because BN is affine;
what follows them on ``[N, C]`` - the gathered map's own BN, the excite sub-network - is left to PyTorch.
"""

from typing import Any

import torch
from torch import Tensor, nn

from geexp.operators.gather import GlobalConvGather
from geexp.operators.gather_excite import GatherExcite
from geexp.operators.tail.compiled import differentiable_backward
from geexp.operators.tail.launch import Kernels
from geexp.operators.tail.network import back_through, network_of, through


class GlobalTail(torch.autograd.Function):
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
        weight = parameters[0] if isinstance(operator.gather, GlobalConvGather) else None
        on_batch = norm.training or norm.running_mean is None
        kernels = Kernels(z, weighted=weight is not None, on_batch=on_batch)
        mean, inverse, plane, gathered = kernels.normalise(norm, gamma, beta, *_in_memory_order(weight, z))
        ctx.graph, logits = None, gathered
        if (network := network_of(operator)) is not None:
            ctx.graph = through(network, parameters[weight is not None :], gathered[:, :, None, None], z)
            logits = ctx.graph[-1].detach()
        out = torch.empty_like(z)
        kernels.call("join", z, shortcut, logits, gamma, beta, mean, inverse, out)
        ctx.operator, ctx.eps, ctx.weighted = operator, norm.eps, weight is not None
        frozen = (None, None) if on_batch else (norm.running_mean, norm.running_var)
        ctx.save_for_backward(z, out, gamma, beta, *frozen, mean, inverse, plane, logits, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, out, gamma, beta, frozen_mean, _, mean, inverse, plane, logits, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            first, rest = differentiable_backward(ctx.saved_tensors[:6], ctx.eps, grads[0], ctx.operator, parameters)
            return *first, None, None, *rest
        weight = parameters[0] if ctx.weighted else None
        kernels = Kernels(z, weighted=weight is not None, on_batch=frozen_mean is None)
        lines, weight_sum = _in_memory_order(weight, z)
        format_of_z = torch.contiguous_format if z.is_contiguous() else torch.channels_last
        grad = grads[0].contiguous(memory_format=format_of_z)
        grad_sum, grad_z = torch.empty_like(z), torch.empty_like(z)
        totals, moments, of_gathered, of_gamma, of_beta = kernels.empty("NSC NSC NC C C")
        kernels.call("split_gradient", grad, out, z, mean, grad_sum, totals, moments)

        def small(*, of_logits: bool, of_norm: bool) -> None:
            known = totals, moments, logits, plane, weight_sum, gamma, beta, inverse
            flags = {"OF_LOGITS": of_logits, "OF_NORM": of_norm}
            kernels.call("small_gradients", *known, of_gathered, of_gamma, of_beta, kernels.N, **flags)

        of_parameters: list[Tensor | None] = []
        if ctx.graph is None:
            small(of_logits=True, of_norm=True)
        else:
            small(of_logits=True, of_norm=False)
            of_leaf, of_parameters = back_through(ctx.graph, of_gathered)
            of_gathered = of_leaf.flatten(1).contiguous()
            small(of_logits=False, of_norm=True)
        given = grad_sum, z, lines, logits, of_gathered, gamma, beta, mean, inverse
        if weight is None:
            kernels.call("branch_gradient", *given, of_gamma, of_beta, grad_z, kernels.N)
        else:
            (of_lines,) = kernels.empty("GLC")
            out_and_sizes = grad_z, of_lines, kernels.N, kernels.images_of_group
            kernels.call("branch_and_weight_gradient", *given, of_gamma, of_beta, *out_and_sizes)
            of_weight = of_lines.sum(0)
            of_weight = of_weight.view(z.shape[1], -1) if z.is_contiguous() else of_weight.view(-1, z.shape[1]).t()
            of_parameters.insert(0, of_weight.to(weight.dtype).reshape(weight.shape))
        return grad_z, grad_sum, of_gamma.to(gamma.dtype), of_beta.to(beta.dtype), None, None, *of_parameters


def _in_memory_order(weight: Tensor | None, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gather's weight ``[C, 1, H, W]`` as an image of ``z`` lies in memory, in its dtype, and its sums ``[C]``."""
    if weight is None:
        return None, None
    lines = weight.detach().flatten(1).to(z.dtype)  # as a convolution casts it under autocast
    sums = lines.sum(1, dtype=torch.promote_types(z.dtype, torch.float32))
    return (lines if z.is_contiguous() else lines.t()).contiguous(), sums
