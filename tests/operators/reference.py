"""Gather-Excite written straight from the paper's formulas: loops over output cells, float64, no tricks.

Slow on purpose. Differentiable, since it is made of plain tensor operations; its parameters are those of the module
under test, read by their place.
"""

import math

import torch
from torch import Tensor, nn


def pooled(x: Tensor, extent: int | str, pool: str, border: str = "real") -> Tensor:
    """Each output cell sees one channel within a window of (2e-1)² around e·i: real pixels only, or with zeros beside
    them."""
    H, W = x.shape[2:]
    reduce = (lambda v: v.mean((2, 3))) if pool == "avg" else (lambda v: v.flatten(2).max(2).values)
    if extent == "global":
        return reduce(x)[:, :, None, None]
    rows = []
    for i in range(math.ceil(H / extent)):
        cells = []
        for j in range(math.ceil(W / extent)):
            top, left = max(0, extent * i - extent + 1), max(0, extent * j - extent + 1)
            window = x[:, :, top : extent * i + extent, left : extent * j + extent]
            cells.append(reduce(window) if border == "real" else window.sum((2, 3)) / (2 * extent - 1) ** 2)
        rows.append(torch.stack(cells, dim=2))
    return torch.stack(rows, dim=2)


def depthwise_3x3_stride_2(x: Tensor, weight: Tensor) -> Tensor:
    N, C, H, W = x.shape
    out = x.new_zeros(N, C, math.ceil(H / 2), math.ceil(W / 2))
    rows = []
    for i in range(out.shape[2]):
        cells = []
        for j in range(out.shape[3]):
            total = x.new_zeros(N, C)
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= 2 * i + di < H and 0 <= 2 * j + dj < W:
                        total = total + x[:, :, 2 * i + di, 2 * j + dj] * weight[:, 0, di + 1, dj + 1]
            cells.append(total)
        rows.append(torch.stack(cells, dim=2))
    return torch.stack(rows, dim=2)


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    scaled = (x - mean) / (var + norm.eps).sqrt()
    return scaled * norm.weight[None, :, None, None] + norm.bias[None, :, None, None]


def convolved(x: Tensor, extent: int | str, gather: nn.Sequential, final_relu: bool) -> Tensor:
    convolutions = [m for m in gather if isinstance(m, nn.Conv2d)]
    norms = [m for m in gather if isinstance(m, nn.BatchNorm2d)]
    if extent == "global":
        (weight,) = (m.weight for m in convolutions)
        x = (x * weight[:, 0][None]).sum((2, 3))[:, :, None, None]
        x = normalised(x, norms[0])
        return x.clamp(min=0) if final_relu else x
    assert len(convolutions) == math.log2(extent)
    for step, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        x = normalised(depthwise_3x3_stride_2(x, convolution.weight), norm)
        if step < len(norms) - 1 or final_relu:
            x = x.clamp(min=0)
    return x


def subnetwork(x: Tensor, transform: nn.Sequential) -> Tensor:
    first, _, second = transform
    hidden = torch.einsum("nchw,oc->nohw", x, first.weight[:, :, 0, 0]) + first.bias[None, :, None, None]
    return (
        torch.einsum("nchw,oc->nohw", hidden.clamp(min=0), second.weight[:, :, 0, 0]) + second.bias[None, :, None, None]
    )


def gather_excite(x: Tensor, module) -> Tensor:
    """y = x · σ(interp(f(gather(x)))) with interp's source index ⌊i·h/H⌋."""
    if module.variant in ("theta_minus", "se"):
        gathered = pooled(x, module.extent, module.gather.pool)
    else:
        gathered = convolved(x, module.extent, module.gather, final_relu=module.variant == "theta_plus")
    if module.variant in ("theta_plus", "se"):
        gathered = subnetwork(gathered, module.excite.transform)
    gate = 1 / (1 + torch.exp(-gathered))
    (H, W), (h, w) = x.shape[2:], gate.shape[2:]
    rows = [torch.stack([gate[:, :, i * h // H, j * w // W] for j in range(W)], dim=2) for i in range(H)]
    return x * torch.stack(rows, dim=2)
