"""The tail of a residual block as one operator on a CPU: relu(shortcut + GE(BN(branch))) for GE-θ⁻ of global extent.
``kernels`` are its counterpart on a GPU.

The gather is free here: the mean of a normalised plane is an affine function of its mean before BN, g = a·M + b, and
BN computes the planes' means M anyway. So the tail reads, writes and saves for backward the same full-size tensors as
the tail of a block without Gather-Excite.

Forward and backward are pure functions, compiled with ``torch.compile``, inside one autograd Function that decides what
is saved. Shapes are symbolic: each function is compiled once per dtype and memory format, for all stages and batch
sizes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.operators.excite import average_excite


def average_excite_tail(norm: nn.BatchNorm2d, branch: Tensor, shortcut: Tensor) -> Tensor:
    """``relu(shortcut + y · σ(mean of y))`` with y = ``norm(branch)``; updates running statistics as ``norm`` does.

    Args:
        norm: with weight and bias, in training or eval mode; see ``takes_tail``.
        branch, shortcut: ``[N, C, H, W]`` of one dtype, both contiguous or both channels_last.

    Returns:
        ``[N, C, H, W]``, in the branch's memory format. Backward saves the branch and this result. Double backward
        works, at the cost of the plain composition.
    """
    on_batch = norm.training or norm.running_mean is None
    mean, var = (None, None) if on_batch else (norm.running_mean, norm.running_var)
    out, batch_mean, batch_var = _Tail.apply(branch, shortcut, norm.weight, norm.bias, mean, var, norm.eps)
    if norm.training and norm.running_mean is not None:
        _update_running_statistics(norm, batch_mean, batch_var, branch.numel() // branch.shape[1])
    return out


def takes_tail(norm: nn.Module, branch: Tensor, shortcut: Tensor) -> bool:
    """Whether ``average_excite_tail`` supports these inputs, with the same result as the plain composition."""
    if type(norm) is not nn.BatchNorm2d or not norm.affine or (norm.running_mean is None) != (norm.running_var is None):
        return False
    alike = (branch.shape, branch.dtype, branch.device) == (shortcut.shape, shortcut.dtype, shortcut.device)
    if not alike or branch.dim() != 4 or not branch.is_floating_point():
        return False
    if branch.numel() <= branch.shape[1]:  # at most one value per channel: BN has an error message for it
        return False
    formats = (torch.contiguous_format, torch.channels_last)
    return any(all(t.is_contiguous(memory_format=f) for t in (branch, shortcut)) for f in formats)


def tail_failure() -> Exception | None:
    """The error that prevented compilation of the tail, which then runs uncompiled and slow; None if there was none."""
    return _forward.failure or _backward.failure


class Compiled:
    """A pure function, compiled at its first call. If that fails it runs uncompiled and ``failure`` holds the error."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.compiled: Any = None
        self.failure: Exception | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.failure is None:
            try:
                if self.compiled is None:  # not at import: importing the compiler takes seconds
                    self.compiled = torch.compile(self.function, dynamic=True)
                return self.compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, OSError) as error:  # from Dynamo, Inductor, the C++ compiler or the disk of its cache
                self.failure = error
        return self.function(*arguments)


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        shortcut: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels = [None if t is None else t.detach() for t in (weight, bias, mean, var)]
        with torch.autocast(z.device.type, enabled=False):
            sums, mean_of_all, var_of_all, *small = _forward(
                _lines(z), _lines(shortcut), *channels, eps, z.is_contiguous()
            )
        out = _map(sums, z)
        ctx.eps = eps
        ctx.save_for_backward(z, out, weight, bias, mean, var, *small)
        ctx.mark_non_differentiable(mean_of_all, var_of_all)
        return out, mean_of_all, var_of_all

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, out, weight, bias, mean, _, *small = ctx.saved_tensors
        if torch.is_grad_enabled():
            first, _ = differentiable_backward(ctx.saved_tensors[:6], ctx.eps, grads[0])
            return *first, None, None, None
        contiguous = z.is_contiguous()
        grad = grads[0].contiguous(memory_format=torch.contiguous_format if contiguous else torch.channels_last)
        with torch.autocast(z.device.type, enabled=False):
            grad_z, grad_shortcut, grad_weight, grad_bias = _backward(
                *map(_lines, (grad, z, out)), weight.detach(), bias.detach(), *small, mean is None, contiguous
            )
        of_channels = grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)
        return _map(grad_z, z), _map(grad_shortcut, z), *of_channels, None, None, None


def differentiable_backward(
    saved: tuple[Tensor, ...],
    eps: float,
    grad: Tensor,
    operator: nn.Module | None = None,
    parameters: Sequence[Tensor] = (),
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The gradients by the plain composition, with a graph for double backward.

    Args:
        saved: branch, result, BN's weight and bias, and its mean and variance (both None unless BN is frozen).
        operator: a ``GatherExcite`` with these ``parameters``; None for GE-θ⁻ of global extent.

    Returns:
        The gradients of branch, shortcut, BN's weight and bias; those of the parameters.
    """
    z, out, gamma, beta, mean, var = saved
    # Differentiate with respect to aliases: branch and shortcut may share an origin, which must not count twice.
    z, gamma, beta = (t.view_as(t) for t in (z, gamma, beta))
    aliases = [p.view_as(p) for p in parameters]
    grad_sum = torch.where(out > 0, grad, 0)
    y = F.batch_norm(z, mean, var, gamma, beta, training=mean is None, eps=eps)
    if operator is None:
        y = average_excite(y)
    else:
        names = [name for name, _ in operator.named_parameters()]
        state = dict(zip(names, aliases, strict=True)) | {k: v.clone() for k, v in operator.named_buffers()}
        mixed = any(p.dtype != y.dtype for p in aliases)
        with torch.autocast(y.device.type, dtype=y.dtype, enabled=mixed):
            y = torch.func.functional_call(operator, state, (y,))
    inputs = [z, gamma, beta, *aliases]
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad_sum, create_graph=True) if wanted else ())
    of_z, *others = (next(found) if t.requires_grad else None for t in inputs)
    return [of_z, grad_sum, *others[:2]], others[2:]


def _forward_sweeps(
    z: Tensor,
    shortcut: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    contiguous: bool,
) -> tuple[Tensor, ...]:
    """Two sweeps over memory: first the planes' statistics, then the sum. Accumulates in float32 or better.

    Maps are ``[N, C, L]`` if ``contiguous``, else ``[N, L, C]``; planes ``[N, C]``; channels ``[C]``.
    """
    kind, line = torch.promote_types(z.dtype, torch.float32), 2 if contiguous else 1
    x = z.to(kind)
    if mean is None or var is None:
        # BN is invariant to a shift. Shifting by one of the values first avoids cancellation in E[x²] - E[x]² when all
        # values are far from zero.
        shift = x.select(line, z.shape[line] // 2).mean(0)
        x = x - _wide(shift, contiguous)
        plane = x.mean(line)
        centre = plane.mean(0)
        variance = ((x * x).mean(line).mean(0) - centre * centre).clamp(min=0)
    else:
        shift, variance = mean.to(kind), var.to(kind)
        x = x - _wide(shift, contiguous)
        plane = x.mean(line)
        centre = torch.zeros_like(shift)
    inverse = torch.rsqrt(variance + eps)
    a, b = weight.to(kind) * inverse, bias.to(kind)
    plane = plane - centre
    gate = torch.sigmoid(a * plane + b)
    y = (x - _wide(centre, contiguous)) * (a * gate).unsqueeze(line) + (b * gate).unsqueeze(line)
    out = torch.relu(shortcut.to(kind) + y).to(z.dtype)
    return out, shift + centre, variance, shift, centre, inverse, plane, gate


def _backward_sweeps(
    grad: Tensor,
    z: Tensor,
    out: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    centre: Tensor,
    inverse: Tensor,
    plane: Tensor,
    gate: Tensor,
    on_batch: bool,
    contiguous: bool,
) -> tuple[Tensor, ...]:
    """Two sweeps: first two sums per plane, which give all small gradients, then the branch's gradient."""
    kind, line = gate.dtype, 2 if contiguous else 1
    size = z.shape[line]
    a, b = weight.to(kind) * inverse, bias.to(kind)
    x = z.to(kind) - _wide(shift, contiguous) - _wide(centre, contiguous)
    grad_sum = torch.where(out > 0, grad, 0)
    d = grad_sum.to(kind)
    total, moment = d.sum(line), (d * x).sum(line)
    grad_gathered = (a * moment + b * total) * gate * (1 - gate)
    grad_bias = (gate * total + grad_gathered).sum(0)
    grad_weight = (gate * moment + grad_gathered * plane).sum(0) * inverse
    grad_z = d * (a * gate).unsqueeze(line)
    if on_batch:
        count = size * z.shape[0]
        level = a * (grad_gathered / size - grad_bias / count)
        grad_z = grad_z + x * _wide(-a * inverse * grad_weight / count, contiguous) + level.unsqueeze(line)
    else:
        grad_z = grad_z + (a * grad_gathered / size).unsqueeze(line)
    return grad_z.to(z.dtype), grad_sum, grad_weight, grad_bias


def _wide(channels: Tensor, contiguous: bool) -> Tensor:
    return channels[:, None] if contiguous else channels


_forward, _backward = Compiled(_forward_sweeps), Compiled(_backward_sweeps)


def _lines(t: Tensor) -> Tensor:
    """A map with its pixels flattened in memory order: ``[N, C, L]``, or ``[N, L, C]`` for channels_last."""
    t = t.detach()  # requires_grad would be a guard of the compiler and cost another compilation
    return t.flatten(2) if t.is_contiguous() else t.permute(0, 2, 3, 1).flatten(1, 2)


def _map(lines: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``_lines``, but not a view: autograd forbids in-place changes of a view returned by a Function."""
    if like.is_contiguous():
        return lines.view(like.shape).data
    N, C, H, W = like.shape
    return lines.view(N, H, W, C).permute(0, 3, 1, 2).data


def _update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """As in ``nn.BatchNorm2d``: unbiased variance; cumulative average if momentum is None."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    share = count_batch(norm)
    with torch.no_grad():
        norm.running_mean.lerp_(mean.to(norm.running_mean), share)
        norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var), share)


def count_batch(norm: nn.BatchNorm2d) -> float:
    """Count one more batch, and return its share of the running statistics."""
    share = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            share = 1 / float(norm.num_batches_tracked)
    return share
