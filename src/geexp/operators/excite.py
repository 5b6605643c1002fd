"""Excite: gate the features with what was gathered (paper, section 3): ``x · σ(interp(f(x̂)))``.

Nearest resizing and the sigmoid commute, so the sigmoid is taken on the small grid. Nearest means source index
⌊i·h/H⌋, which is not i//e where e does not divide H, nor always what ``F.interpolate`` computes in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.operators.gather import is_channels_last


def excite(x: Tensor, logits: Tensor) -> Tensor:
    """``x · σ(logits)``, the gate resized to x's grid by nearest neighbour.

    Args:
        x: features ``[N, C, H, W]``.
        logits: the gate before the sigmoid, ``[N, C, h, w]`` with h ≤ H and w ≤ W.

    Returns:
        ``[N, C, H, W]``, in x's dtype and memory format. Backward keeps x and the small logits, no gate of full
        resolution; it can itself be differentiated.
    """
    return _Excite.apply(x, logits.to(x.dtype))


class ExciteSubnetwork(nn.Sequential):
    """f of GE-θ⁺ and SE: 1x1 convolution C→C/r, ReLU, 1x1 convolution C/r→C, with biases. ``[N,C,h,w]`` → same.

    Initialised N(0, 0.01²) with zero biases, as the authors' network definitions say.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        if reduction < 1 or channels < reduction:
            raise ValueError(f"reduction={reduction!r}: must be between 1 and the number of channels, {channels}")
        hidden = channels // reduction
        squeeze, expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        super().__init__(squeeze, nn.ReLU(inplace=True), expand)
        for conv in (squeeze, expand):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


class Excite(nn.Module):
    """Excite as a module: ``forward(x, gathered)`` = x · σ(interp(f(gathered))).

    ``transform`` is f: the identity for GE-θ⁻ and GE-θ, an :class:`ExciteSubnetwork` for GE-θ⁺ and SE.
    """

    def __init__(self, transform: nn.Module | None = None) -> None:
        super().__init__()
        self.transform = transform if transform is not None else nn.Identity()

    def forward(self, x: Tensor, gathered: Tensor) -> Tensor:
        return excite(x, self.transform(gathered))


class _Excite(torch.autograd.Function):
    """Saves the logits, not their sigmoid: with the sigmoid saved, double backward would be wrong without an error."""

    @staticmethod
    def forward(x: Tensor, logits: Tensor) -> Tensor:
        return _scale(x, torch.sigmoid(logits))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        x, logits = ctx.saved_tensors
        gate = torch.sigmoid(logits)
        grad_x = _scale(grad, gate) if ctx.needs_input_grad[0] else None
        grad_logits = None
        if ctx.needs_input_grad[1]:
            grad_logits = _cell_sum(grad * x, gate.shape[2], gate.shape[3]) * gate * (1 - gate)
        return grad_x, grad_logits


def _scale(x: Tensor, gate: Tensor) -> Tensor:
    """x times the gate, nearest-resized; where the grids divide, by broadcasting over cells instead of resizing."""
    (H, W), (h, w) = x.shape[2:], gate.shape[2:]
    if h == w == 1:
        return x * gate
    if H % h or W % w:
        rows, columns = _nearest(H, h, x.device), _nearest(W, w, x.device)
        return x * gate.index_select(2, rows).index_select(3, columns)
    if is_channels_last(x):
        cells = x.unflatten(3, (w, W // w)).unflatten(2, (h, H // h)) * gate[:, :, :, None, :, None]
        y = cells.flatten(2, 3).flatten(3, 4)
    else:
        # The gate is widened along W first: the innermost loop then runs over whole rows.
        wide = gate.repeat_interleave(W // w, dim=3)
        y = (x.unflatten(2, (h, H // h)) * wide.unsqueeze(3)).flatten(2, 3)
    # A Function must not return a view: the in-place sum with the shortcut that follows would be refused.
    return torch.ops.aten._unsafe_view(y, y.shape)


def _cell_sum(t: Tensor, h: int, w: int) -> Tensor:
    """The adjoint of nearest resizing: the sum over every cell of the small grid, ``[N,C,H,W]`` → ``[N,C,h,w]``."""
    H, W = t.shape[2:]
    if h == w == 1:
        return t.sum((2, 3), keepdim=True)
    if H % h or W % w:
        rows, columns = _nearest(H, h, t.device), _nearest(W, w, t.device)
        narrow = t.new_zeros(*t.shape[:3], w).index_add(3, columns, t)
        return t.new_zeros(*t.shape[:2], h, w).index_add(2, rows, narrow)
    if is_channels_last(t):
        return F.avg_pool2d(t, (H // h, W // w), divisor_override=1)
    return t.unflatten(2, (h, H // h)).sum(3).unflatten(3, (w, W // w)).sum(4)


def _nearest(size: int, source: int, device: torch.device) -> Tensor:
    """Source index ⌊i·source/size⌋ of every output index, in integers."""
    return torch.arange(size, device=device) * source // size
