"""Excite: gate the features by the gathered context (paper, section 3): ``x · σ(interp(f(x̂)))``.

Nearest resizing and the sigmoid commute, so the sigmoid is computed on the small grid. Nearest means source index
⌊i·h/H⌋, which differs from i//e if e does not divide H. ``F.interpolate`` computes this index in float32 and is off by
one at some sizes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geexp.operators.gather import check_implementation, is_channels_last
from geexp.operators.torch_private import is_traced, unaliased, upsample_nearest_backward


def excite(x: Tensor, logits: Tensor, implementation: str = "auto") -> Tensor:
    """``x · σ(logits)``, with the gate resized to x's grid by nearest neighbour.

    Args:
        x: features ``[N, C, H, W]``.
        logits: the gate before the sigmoid, ``[N, C, h, w]`` with h ≤ H and w ≤ W.
        implementation: ``auto``, ``reference`` or ``fused``, see ``check_implementation``.

    Returns:
        ``[N, C, H, W]``, in x's dtype and memory format. Except with ``reference``, backward saves x and the small
        logits, but no full-resolution gate. Supports double backward.
    """
    logits = logits.to(x.dtype)
    if _is_plain(x, logits, check_implementation(implementation)):
        return x * torch.sigmoid(_resized(logits, x.shape[2], x.shape[3]))
    if torch.is_grad_enabled() and (x.requires_grad or logits.requires_grad):
        return _Excite.apply(x, logits)
    return scale(x, torch.sigmoid(logits))


def average_excite(x: Tensor) -> Tensor:
    """GE-θ⁻ of global extent: gate x by its own spatial mean. ``[N, C, H, W]`` → the same shape."""
    return _AverageExcite.apply(x)[0]


class ExciteSubnetwork(nn.Sequential):
    """f of GE-θ⁺ and SE: 1x1 convolution C→C/r, ReLU, 1x1 convolution C/r→C, with biases.

    ``[N, C, h, w]`` → the same shape. Weights are initialised N(0, 0.01²) and biases zero, as in the authors' network
    definitions.

    Raises:
        ValueError: if ``reduction`` is below 1 or above ``channels``.
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

    def __init__(self, transform: nn.Module | None = None, implementation: str = "auto") -> None:
        super().__init__()
        self.transform = transform if transform is not None else nn.Identity()
        self.implementation = check_implementation(implementation)

    def forward(self, x: Tensor, gathered: Tensor) -> Tensor:
        return excite(x, self.transform(gathered), self.implementation)


def _is_plain(x: Tensor, logits: Tensor, implementation: str) -> bool:
    (H, W), (h, w) = x.shape[2:], logits.shape[2:]
    if implementation == "reference" or h == w == 1:  # one gate per channel: nothing is resized
        return True
    if implementation == "fused":
        return False
    # Forward + backward with e=4 at 14² (N=8, C=1024, float32, one thread of an EPYC 9004): 16 ms with PyTorch's
    # operations and 19 ms with our Function, which resizes the gate by index twice; in channels_last 32 ms and 9 ms.
    return x.device.type == "cpu" and bool(H % h or W % w) and not is_channels_last(x)


class _Excite(torch.autograd.Function):
    """Saves the logits, not their sigmoid: with a saved sigmoid, double backward would be wrong without an error."""

    @staticmethod
    def forward(x: Tensor, logits: Tensor) -> Tensor:
        return scale(x, torch.sigmoid(logits))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        x, logits = ctx.saved_tensors
        gate = torch.sigmoid(logits)
        grad_x = scale(grad, gate) if ctx.needs_input_grad[0] else None
        grad_logits = None
        if ctx.needs_input_grad[1]:
            grad_logits = cell_sum(grad * x, gate.shape[2], gate.shape[3]) * gate * (1 - gate)
        return grad_x, grad_logits


class _AverageExcite(torch.autograd.Function):
    """GE-θ⁻ of global extent as one function of x, so that backward writes the full-size gradient only once.

    Autograd's gradient of a mean and a product is a sum of two full-size tensors, one of them constant per plane.
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(x.mean((2, 3), keepdim=True))
        return x * gate, gate

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad, _), (x, gate) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward needs the gate as a function of x
            gate = torch.sigmoid(x.mean((2, 3), keepdim=True))
        grad_mean = (grad * x).sum((2, 3), keepdim=True) * gate * (1 - gate)
        return torch.addcmul(grad_mean / (x.shape[2] * x.shape[3]), grad, gate)


def scale(x: Tensor, gate: Tensor) -> Tensor:
    """x times the nearest-resized gate. If h divides H and w divides W, the gate is broadcast over cells of pixels.

    At N=8, C=256, 56² in float32, one thread of an EPYC 9004, e = 2, 4, 8: broadcasting takes 4.5, 3.6 and 3.4 ms in
    channels_last and 5.1, 4.5 and 3.6 ms in contiguous format. ``F.interpolate`` followed by a product takes 5, 4.6 and
    4.6 ms in channels_last and 26 ms in contiguous format.
    """
    (H, W), (h, w) = x.shape[2:], gate.shape[2:]
    if h == w == 1:
        return x * gate
    if H % h or W % w:
        return x * _by_index(gate, H, W, channels_last=is_channels_last(x))
    if is_channels_last(x):
        cells = x.unflatten(3, (w, W // w)).unflatten(2, (h, H // h)) * gate[:, :, :, None, :, None]
        y = cells.flatten(2, 3).flatten(3, 4)
    else:
        # Widen the gate along W first, so that the innermost loop runs over whole rows.
        wide = gate.repeat_interleave(W // w, dim=3)
        y = (x.unflatten(2, (h, H // h)) * wide.unsqueeze(3)).flatten(2, 3)
    return unaliased(y)


def _resized(gate: Tensor, H: int, W: int) -> Tensor:
    """Nearest resizing with PyTorch's own operations: ``[N,C,h,w]`` → ``[N,C,H,W]``, or unchanged if 1x1."""
    h, w = gate.shape[2:]
    if h == w == 1:
        return gate
    if H % h or W % w:  # F.interpolate computes the index in float32 and may be off by one
        return _by_index(gate, H, W, channels_last=is_channels_last(gate))
    return F.interpolate(gate, size=(H, W))


def _by_index(gate: Tensor, H: int, W: int, *, channels_last: bool) -> Tensor:
    """Nearest resizing by index. In channels_last whole pixels are copied, 3 times as fast at 14² and 7²."""
    cells = _cells(H, W, gate)
    if channels_last:
        pixels = gate.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, cells)
        return pixels.unflatten(1, (H, W)).permute(0, 3, 1, 2)
    return gate.flatten(2).index_select(2, cells).unflatten(2, (H, W))


def cell_sum(t: Tensor, h: int, w: int) -> Tensor:
    """The adjoint of nearest resizing: sum the pixels of each cell of the small grid, ``[N,C,H,W]`` → ``[N,C,h,w]``."""
    H, W = t.shape[2:]
    if h == w == 1:
        return t.sum((2, 3), keepdim=True)
    if H % h or W % w:
        return _index_sum(t, h, w)
    if is_channels_last(t):
        return F.avg_pool2d(t, (H // h, W // w), divisor_override=1)
    if (H // h, W // w) == (2, 2):
        # Sums over pairs are too short to vectorise: 9.8 ms, against 4.5 ms here (same setting as in ``scale``).
        return upsample_nearest_backward(t, h, w)
    return t.unflatten(2, (h, H // h)).sum(3).unflatten(3, (w, W // w)).sum(4)


def _index_sum(t: Tensor, h: int, w: int) -> Tensor:
    """``cell_sum`` by index, in t's own memory format; converting to the other format takes 10 times as long."""
    N, C, H, W = t.shape
    cells = _cells(H, W, t[:, :, :h, :w])
    if t.device.type == "cuda":  # where index_add is made of atomics: in random order, and slow in half precision
        return _matrix_sum(t, cells, h, w)
    if is_channels_last(t):
        sums = t.new_zeros(N, h * w, C).index_add(1, cells, t.permute(0, 2, 3, 1).flatten(1, 2))
        return sums.unflatten(1, (h, w)).permute(0, 3, 1, 2)
    return t.new_zeros(N, C, h * w).index_add(2, cells, t.flatten(2)).unflatten(2, (h, w))


def _matrix_sum(t: Tensor, cells: Tensor, h: int, w: int) -> Tensor:
    """``cell_sum`` as a product with a matrix ``[H·W, h·w]`` that is 1 where a pixel belongs to a cell, else 0."""
    members = (cells[:, None] == torch.arange(h * w, device=t.device)).to(t.dtype)
    if is_channels_last(t):
        return (members.T @ t.permute(0, 2, 3, 1).flatten(1, 2)).unflatten(1, (h, w)).permute(0, 3, 1, 2)
    return (t.flatten(2) @ members).unflatten(2, (h, w))


_known_cells: dict[tuple[object, ...], Tensor] = {}


def _cells(H: int, W: int, grid: Tensor) -> Tensor:
    """The index of each pixel's cell in the small ``grid``, by ⌊i·h/H⌋ and ⌊j·w/W⌋ in integers: ``[H·W]``."""
    h, w = grid.shape[2:]
    if is_traced(grid):
        return _new_cells(H, W, h, w, grid.device)
    key = H, W, h, w, grid.device
    if key not in _known_cells:
        with torch.inference_mode(False):  # what is made in it could not be saved for another call's backward
            _known_cells[key] = _new_cells(H, W, h, w, grid.device)
    return _known_cells[key]


def _new_cells(H: int, W: int, h: int, w: int, device: torch.device) -> Tensor:
    rows = torch.arange(H, device=device) * h // H
    columns = torch.arange(W, device=device) * w // W
    return (rows[:, None] * w + columns).flatten()
