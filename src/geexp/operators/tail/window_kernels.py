# mypy: disable-error-code="no-untyped-def"
"""The sweeps of a residual block's tail whose gather has a finite extent; ``finite_extent`` calls them.

Notation as in ``global_kernels``. Windows of 2E-1 pixels and stride E gather a map of H·W pixels on a grid of M
positions, WM in a row; in memory, positions are ML apart and channels MC. The gathered value of a window is a·t + b·W
with t = Σ w·(z - mean) and W = Σ w over the window's pixels within the map; for an average w = 1/size. The gate of a
pixel is that of its cell in a grid of HM·WM cells, by ⌊y·HM/H⌋ and ⌊x·WM/W⌋.
"""

import triton
import triton.language as tl

from geexp.operators.tail.global_kernels import jit


@triton.jit
def _cells(pixel, H: tl.constexpr, W: tl.constexpr, HM: tl.constexpr, WM: tl.constexpr):
    return pixel // W * HM // H * WM + pixel % W * WM // W


@triton.jit
def _real(window, E: tl.constexpr, SIZE: tl.constexpr):
    """How many of a window's 2E-1 pixels along one axis are within the map."""
    return tl.minimum(window * E + E, SIZE) - tl.maximum(window * E - (E - 1), 0)


@triton.jit
def gather_windows(
    z,
    weight,
    whole,
    gamma,
    beta,
    mean,
    inverse,
    plane,
    gathered,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    E: tl.constexpr,
    WM: tl.constexpr,
    M: tl.constexpr,
    MC: tl.constexpr,
    ML: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PADDED: tl.constexpr,
    ACC: tl.constexpr,
):
    """t in ``plane`` and the gathered values, from W in ``whole``, which is the same for all images."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    n = tl.program_id(2).to(tl.int64)
    exists = c < C
    centre = tl.load(mean + c, mask=exists, other=0)
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * tl.load(inverse + c, mask=exists, other=0)
    b = tl.load(beta + c, mask=exists, other=0).to(ACC)
    t = tl.zeros([BP, BC], ACC)
    for tap in range((2 * E - 1) * (2 * E - 1)):
        y = p // WM * E + (tap // (2 * E - 1) - (E - 1))
        x = p % WM * E + (tap % (2 * E - 1) - (E - 1))
        inside = (p < M) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        mask = inside[:, None] & exists[None, :]
        at = n * (C * H * W) + ((y * W + x)[:, None] * SL + c[None, :] * SC)
        value = tl.load(z + at, mask=mask, other=0).to(ACC) - centre[None, :]
        if WEIGHTED:
            value *= tl.load(weight + tap * C + c, mask=exists, other=0).to(ACC)[None, :]
        t += tl.where(mask, value, 0)
    if not WEIGHTED:
        size = tl.full([BP], (2 * E - 1) * (2 * E - 1), tl.int32)
        if not PADDED:
            size = _real(p // WM, E, H) * _real(p % WM, E, W)
        t /= tl.where(p < M, size, 1).to(ACC)[:, None]
    mask = (p < M)[:, None] & exists[None, :]
    of_image = p[:, None] * ML + c[None, :] * MC
    level = b[None, :] * tl.load(whole + of_image, mask=mask, other=0)
    tl.store(plane + n * (C * M) + of_image, t, mask=mask)
    tl.store(gathered + n * (C * M) + of_image, a[None, :] * t + level, mask=mask)


@triton.jit
def join_cells(
    z,
    shortcut,
    logits,
    gamma,
    beta,
    mean,
    inverse,
    out,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    HM: tl.constexpr,
    WM: tl.constexpr,
    MC: tl.constexpr,
    ML: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
    ACC: tl.constexpr,
):
    """out = relu(shortcut + y·σ(logits of the pixel's cell))."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    row = tl.program_id(1) * BL + tl.arange(0, BL)
    n = tl.program_id(2).to(tl.int64)
    exists = c < C
    mask = (row < H * W)[:, None] & exists[None, :]
    centre = tl.load(mean + c, mask=exists, other=0)
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * tl.load(inverse + c, mask=exists, other=0)
    b = tl.load(beta + c, mask=exists, other=0).to(ACC)
    at = n * (C * H * W) + (row[:, None] * SL + c[None, :] * SC)
    cell = n * (C * HM * WM) + (_cells(row, H, W, HM, WM)[:, None] * ML + c[None, :] * MC)
    gate = tl.sigmoid(tl.load(logits + cell, mask=mask, other=0).to(ACC))
    y = (tl.load(z + at, mask=mask, other=0).to(ACC) - centre[None, :]) * a[None, :] + b[None, :]
    value = tl.load(shortcut + at, mask=mask, other=0).to(ACC) + y * gate
    tl.store(out + at, tl.where(value < 0, 0, value), mask=mask)  # keeps NaN, as ReLU does


@triton.jit
def split_gradient_cells(
    grad,
    out,
    z,
    logits,
    gamma,
    beta,
    mean,
    inverse,
    grad_sum,
    grad_logits,
    levels,
    slopes,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    HM: tl.constexpr,
    WM: tl.constexpr,
    MC: tl.constexpr,
    ML: tl.constexpr,
    S: tl.constexpr,
    EY: tl.constexpr,
    EX: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    ACC: tl.constexpr,
):
    """d, the gradient of the sum before the ReLU; that of the logits; partial Σ gate·d and Σ gate·d·(z - mean).

    EY and EX are the largest cell's sides."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    n = tl.program_id(2).to(tl.int64)
    exists = c < C
    centre = tl.load(mean + c, mask=exists, other=0)
    top, left = (p // WM * H + (HM - 1)) // HM, (p % WM * W + (WM - 1)) // WM
    bottom, right = ((p // WM + 1) * H + (HM - 1)) // HM, ((p % WM + 1) * W + (WM - 1)) // WM
    total = tl.zeros([BP, BC], ACC)
    moment = tl.zeros([BP, BC], ACC)
    for pixel in range(EY * EX):
        y, x = top + pixel // EX, left + pixel % EX
        mask = ((p < HM * WM) & (y < bottom) & (x < right))[:, None] & exists[None, :]
        at = n * (C * H * W) + ((y * W + x)[:, None] * SL + c[None, :] * SC)
        d = tl.load(grad + at, mask=mask, other=0)
        d = tl.where(tl.load(out + at, mask=mask, other=0) > 0, d, 0)
        tl.store(grad_sum + at, d, mask=mask)
        total += d.to(ACC)
        moment += d.to(ACC) * (tl.load(z + at, mask=mask, other=0).to(ACC) - centre[None, :])
    mask = (p < HM * WM)[:, None] & exists[None, :]
    at = n * (C * HM * WM) + (p[:, None] * ML + c[None, :] * MC)
    gate = tl.sigmoid(tl.load(logits + at, mask=mask, other=0).to(ACC))
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * tl.load(inverse + c, mask=exists, other=0)
    b = tl.load(beta + c, mask=exists, other=0).to(ACC)
    tl.store(grad_logits + at, (a[None, :] * moment + b[None, :] * total) * gate * (1 - gate), mask=mask)
    at = (n * S + tl.program_id(1)) * C + c
    tl.store(levels + at, tl.sum(gate * total, 0), mask=exists)
    tl.store(slopes + at, tl.sum(gate * moment, 0), mask=exists)


@triton.jit
def sum_gathered(
    grad_gathered,
    plane,
    whole,
    levels,
    slopes,
    C: tl.constexpr,
    M: tl.constexpr,
    MC: tl.constexpr,
    ML: tl.constexpr,
    S: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    ACC: tl.constexpr,
):
    """Partial Σ grad_gathered·W and Σ grad_gathered·t."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    n = tl.program_id(2).to(tl.int64)
    mask = (p < M)[:, None] & (c < C)[None, :]
    of_image = p[:, None] * ML + c[None, :] * MC
    g = tl.load(grad_gathered + n * (C * M) + of_image, mask=mask, other=0).to(ACC)
    t = tl.load(plane + n * (C * M) + of_image, mask=mask, other=0).to(ACC)
    w = tl.load(whole + of_image, mask=mask, other=0)
    at = (n * S + tl.program_id(1)) * C + c
    tl.store(levels + at, tl.sum(g * w, 0), mask=c < C)
    tl.store(slopes + at, tl.sum(g * t, 0), mask=c < C)


@jit
def branch_gradient_windows(
    grad_sum,
    z,
    weight,
    logits,
    grad_gathered,
    gamma,
    beta,
    mean,
    inverse,
    grad_gamma,
    grad_beta,
    grad_z,
    N,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    E: tl.constexpr,
    HM: tl.constexpr,
    WM: tl.constexpr,
    MC: tl.constexpr,
    ML: tl.constexpr,
    HG: tl.constexpr,
    WG: tl.constexpr,
    GC: tl.constexpr,
    GL: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PADDED: tl.constexpr,
    ON_BATCH: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradient of z. The grid of windows has HG·WG positions, GL and GC apart; a pixel is in up to four windows."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    row = tl.program_id(1) * BL + tl.arange(0, BL)
    n = tl.program_id(2).to(tl.int64)
    exists = c < C
    mask = (row < H * W)[:, None] & exists[None, :]
    deviation = tl.load(inverse + c, mask=exists, other=0)
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * deviation
    y, x = row // W, row % W
    of_windows = tl.zeros([BL, BC], ACC)
    for corner in tl.static_range(4):
        i, j = y // E + corner // 2, x // E + corner % 2
        down, right = y - i * E + (E - 1), x - j * E + (E - 1)
        inside = mask & ((i < HG) & (j < WG) & (down >= 0) & (right >= 0))[:, None]
        at = n * (C * HG * WG) + ((i * WG + j)[:, None] * GL + c[None, :] * GC)
        g = tl.load(grad_gathered + at, mask=inside, other=0).to(ACC)
        if WEIGHTED:
            tap = (down * (2 * E - 1) + right)[:, None] * C + c[None, :]
            of_windows += g * tl.load(weight + tap, mask=inside, other=0).to(ACC)
        elif PADDED:
            of_windows += g / ((2 * E - 1) * (2 * E - 1))
        else:
            of_windows += g / tl.maximum(_real(i, E, H) * _real(j, E, W), 1).to(ACC)[:, None]
    cell = n * (C * HM * WM) + (_cells(row, H, W, HM, WM)[:, None] * ML + c[None, :] * MC)
    gate = tl.sigmoid(tl.load(logits + cell, mask=mask, other=0).to(ACC))
    at = n * (C * H * W) + (row[:, None] * SL + c[None, :] * SC)
    value = a[None, :] * (tl.load(grad_sum + at, mask=mask, other=0).to(ACC) * gate + of_windows)
    if ON_BATCH:
        centre = tl.load(mean + c, mask=exists, other=0)
        share = a / (tl.full([BC], H * W, ACC) * N)
        slope = -share * deviation * tl.load(grad_gamma + c, mask=exists, other=0)
        value += (tl.load(z + at, mask=mask, other=0).to(ACC) - centre[None, :]) * slope[None, :]
        value -= (share * tl.load(grad_beta + c, mask=exists, other=0))[None, :]
    tl.store(grad_z + at, value, mask=mask)


@jit
def weight_gradient_windows(
    grad_gathered,
    z,
    gamma,
    beta,
    mean,
    inverse,
    grad_weight,
    N,
    PER,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    WM: tl.constexpr,
    M: tl.constexpr,
    MC: tl.constexpr,
    ML: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    ACC: tl.constexpr,
):
    """Σ grad_gathered·y of each of the 9 taps over PER images; a tile has room for 16 taps."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    tap = tl.arange(0, 16)
    group = tl.program_id(1)
    exists = c < C
    centre = tl.load(mean + c, mask=exists, other=0)
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * tl.load(inverse + c, mask=exists, other=0)
    b = tl.load(beta + c, mask=exists, other=0).to(ACC)
    total = tl.zeros([BP, 16, BC], ACC)
    for image in range(PER):
        n = group * PER + image
        for start in range(0, M, BP):
            p = start + tl.arange(0, BP)
            known = ((p < M) & (n < N))[:, None] & exists[None, :]
            at = n.to(tl.int64) * (C * M) + (p[:, None] * ML + c[None, :] * MC)
            g = tl.load(grad_gathered + at, mask=known, other=0).to(ACC)
            y = (p // WM * 2)[:, None] + (tap // 3 - 1)[None, :]
            x = (p % WM * 2)[:, None] + (tap % 3 - 1)[None, :]
            inside = (y >= 0) & (y < H) & (x >= 0) & (x < W) & (tap < 9)[None, :]
            there = inside[:, :, None] & known[:, None, :]
            at = n.to(tl.int64) * (C * H * W) + ((y * W + x)[:, :, None] * SL + c[None, None, :] * SC)
            value = tl.load(z + at, mask=there, other=0).to(ACC) - centre[None, None, :]
            value = value * a[None, None, :] + b[None, None, :]
            total += tl.where(there, g[:, None, :] * value, 0)
    at = (group * 16 + tap)[:, None] * C + c[None, :]
    tl.store(grad_weight + at, tl.sum(total, 0), mask=exists[None, :])
