# mypy: disable-error-code="no-untyped-def"
"""The sweeps of a residual block's tail whose gather has a global extent; ``global_extent`` calls them.

Notation: z is the branch, ``[N, C, L]`` in memory or ``[N, L, C]`` (channels_last), given by the strides SC and SL
within an image. BN is y = a·(z - mean) + b with a = gamma·inverse, b = beta. The gathered value of a plane is
a·t + b·W with t = Σ w·(z - mean) and W = Σ w; for an average w = 1/L. A plane is summed in S pieces of ROWS pixels, one
per program: partial sums are ``[N, S, C]``.

C, L and the strides are constants, so that accesses have 16 bytes where the map allows it, and an index costs no
division. N is not: the last, smaller batch of an epoch must not compile anew. No kernel uses atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl

jit: Any = triton.jit(do_not_specialize=["N", "PER"])


def accumulator(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def _over_pieces(partial, n, c, mask, C: tl.constexpr, S: tl.constexpr, ACC: tl.constexpr):
    total = tl.zeros(mask.shape, ACC)
    for s in range(S):
        total += tl.load(partial + (n[:, None] * S + s) * C + c[None, :], mask=mask, other=0)
    return total


@jit
def sum_planes(
    z,
    weight,
    sums,
    squares,
    dots,
    N,
    C: tl.constexpr,
    L: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Σx, Σx² and, if WEIGHTED, Σ weight·x, where x is z minus the first pixel of its plane, against cancellation."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    piece = tl.program_id(1)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    images = n.to(tl.int64) * (C * L)
    mask = (n < N)[:, None] & (c < C)[None, :]
    first = tl.load(z + images[:, None] + c[None, :] * SC, mask=mask, other=0).to(ACC)
    total = tl.zeros([BN, BL, BC], ACC)
    square = tl.zeros([BN, BL, BC], ACC)
    dot = tl.zeros([BN, BL, BC], ACC)
    for start in range(0, ROWS, BL):
        row = piece * ROWS + start + tl.arange(0, BL)
        offset = row[:, None] * SL + c[None, :] * SC
        inside = (row < L)[:, None] & (c < C)[None, :]
        there = inside[None, :, :] & (n < N)[:, None, None]
        x = tl.load(z + images[:, None, None] + offset[None, :, :], mask=there, other=0).to(ACC)
        x = tl.where(there, x - first[:, None, :], 0)
        total += x
        square += x * x
        if WEIGHTED:
            w = tl.load(weight + offset, mask=inside, other=0).to(ACC)
            dot += w[None, :, :] * x
    at = (n[:, None] * S + piece) * C + c[None, :]
    tl.store(sums + at, tl.sum(total, 1), mask=mask)
    tl.store(squares + at, tl.sum(square, 1), mask=mask)
    if WEIGHTED:
        tl.store(dots + at, tl.sum(dot, 1), mask=mask)


@jit
def normalise(
    z,
    sums,
    squares,
    dots,
    weight_sum,
    gamma,
    beta,
    running_mean,
    running_var,
    mean,
    inverse,
    plane,
    gathered,
    N,
    eps,
    share,
    C: tl.constexpr,
    L: tl.constexpr,
    SC: tl.constexpr,
    S: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ON_BATCH: tl.constexpr,
    UPDATE: tl.constexpr,
    ACC: tl.constexpr,
):
    """BN's mean and inverse deviation from the partial sums, or from its running statistics unless ON_BATCH; then t in
    ``plane`` and the gathered values, both ``[N, C]``. UPDATE moves the running statistics by ``share``."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    exists = c < C
    if ON_BATCH:
        origin = tl.load(z + c * SC, mask=exists, other=0).to(ACC)
        total = tl.zeros([BN, BC], ACC)
        for start in range(0, N, BN):
            n = start + tl.arange(0, BN)
            mask = (n < N)[:, None] & exists[None, :]
            first = tl.load(z + n.to(tl.int64)[:, None] * (C * L) + c[None, :] * SC, mask=mask, other=0).to(ACC)
            middle = first - origin[None, :] + _over_pieces(sums, n, c, mask, C, S, ACC) / L
            total += tl.where(mask, middle, 0)
        centre = origin + tl.sum(total, 0) / N
        total = tl.zeros([BN, BC], ACC)
        for start in range(0, N, BN):
            n = start + tl.arange(0, BN)
            mask = (n < N)[:, None] & exists[None, :]
            first = tl.load(z + n.to(tl.int64)[:, None] * (C * L) + c[None, :] * SC, mask=mask, other=0).to(ACC)
            s = _over_pieces(sums, n, c, mask, C, S, ACC)
            middle = first - centre[None, :] + s / L
            within = _over_pieces(squares, n, c, mask, C, S, ACC) - s * s / L
            total += tl.where(mask, within + middle * middle * L, 0)
        count = tl.full([BC], L, ACC) * N
        variance = tl.maximum(tl.sum(total, 0) / count, 0)
        if UPDATE:
            old = tl.load(running_mean + c, mask=exists, other=0).to(ACC)
            tl.store(running_mean + c, old + share * (centre - old), mask=exists)
            old = tl.load(running_var + c, mask=exists, other=0).to(ACC)
            tl.store(running_var + c, old + share * (variance * (count / (count - 1)) - old), mask=exists)
    else:
        centre = tl.load(running_mean + c, mask=exists, other=0).to(ACC)
        variance = tl.load(running_var + c, mask=exists, other=1).to(ACC)
    deviation = 1 / tl.sqrt(variance + eps)
    tl.store(mean + c, centre, mask=exists)
    tl.store(inverse + c, deviation, mask=exists)
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * deviation
    level = tl.load(beta + c, mask=exists, other=0).to(ACC)
    whole = tl.full([BC], 1, ACC)
    if WEIGHTED:
        whole = tl.load(weight_sum + c, mask=exists, other=0).to(ACC)
        level *= whole
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        mask = (n < N)[:, None] & exists[None, :]
        first = tl.load(z + n.to(tl.int64)[:, None] * (C * L) + c[None, :] * SC, mask=mask, other=0).to(ACC)
        t = (first - centre[None, :]) * whole[None, :]
        if WEIGHTED:
            t += _over_pieces(dots, n, c, mask, C, S, ACC)
        else:
            t += _over_pieces(sums, n, c, mask, C, S, ACC) / L
        at = n[:, None] * C + c[None, :]
        tl.store(plane + at, t, mask=mask)
        tl.store(gathered + at, a[None, :] * t + level[None, :], mask=mask)


@triton.jit
def join(
    z,
    shortcut,
    logits,
    gamma,
    beta,
    mean,
    inverse,
    out,
    C: tl.constexpr,
    L: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    ROWS: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
    ACC: tl.constexpr,
):
    """out = relu(shortcut + y·σ(logits))."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    n = tl.program_id(2).to(tl.int64)
    exists = c < C
    centre = tl.load(mean + c, mask=exists, other=0)
    gate = tl.sigmoid(tl.load(logits + n * C + c, mask=exists, other=0).to(ACC))
    scale = tl.load(gamma + c, mask=exists, other=0).to(ACC) * tl.load(inverse + c, mask=exists, other=0) * gate
    level = tl.load(beta + c, mask=exists, other=0).to(ACC) * gate
    for start in range(0, ROWS, BL):
        row = tl.program_id(1) * ROWS + start + tl.arange(0, BL)
        mask = (row < L)[:, None] & exists[None, :]
        at = n * (C * L) + (row[:, None] * SL + c[None, :] * SC)
        x = tl.load(z + at, mask=mask, other=0).to(ACC) - centre[None, :]
        value = tl.load(shortcut + at, mask=mask, other=0).to(ACC) + (x * scale[None, :] + level[None, :])
        tl.store(out + at, tl.where(value < 0, 0, value), mask=mask)  # keeps NaN, as ReLU does


@triton.jit
def split_gradient(
    grad,
    out,
    z,
    mean,
    grad_sum,
    totals,
    moments,
    C: tl.constexpr,
    L: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
    ACC: tl.constexpr,
):
    """d, the gradient of the sum before the ReLU, and partial Σd and Σ d·(z - mean)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    n = tl.program_id(2).to(tl.int64)
    exists = c < C
    centre = tl.load(mean + c, mask=exists, other=0)
    total = tl.zeros([BL, BC], ACC)
    moment = tl.zeros([BL, BC], ACC)
    for start in range(0, ROWS, BL):
        row = tl.program_id(1) * ROWS + start + tl.arange(0, BL)
        mask = (row < L)[:, None] & exists[None, :]
        at = n * (C * L) + (row[:, None] * SL + c[None, :] * SC)
        d = tl.load(grad + at, mask=mask, other=0)
        d = tl.where(tl.load(out + at, mask=mask, other=0) > 0, d, 0)
        tl.store(grad_sum + at, d, mask=mask)
        x = tl.load(z + at, mask=mask, other=0).to(ACC) - centre[None, :]
        total += d.to(ACC)
        moment += d.to(ACC) * x
    at = (n * S + tl.program_id(1)) * C + c
    tl.store(totals + at, tl.sum(total, 0), mask=exists)
    tl.store(moments + at, tl.sum(moment, 0), mask=exists)


@jit
def small_gradients(
    totals,
    moments,
    logits,
    plane,
    weight_sum,
    gamma,
    beta,
    inverse,
    grad_gathered,
    grad_gamma,
    grad_beta,
    N,
    C: tl.constexpr,
    S: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    WEIGHTED: tl.constexpr,
    OF_LOGITS: tl.constexpr,
    OF_NORM: tl.constexpr,
    ACC: tl.constexpr,
):
    """OF_LOGITS writes the logits' gradient to ``grad_gathered``, which it is if no network lies between. OF_NORM
    writes the gradients of gamma and beta; it reads ``grad_gathered`` unless OF_LOGITS."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    exists = c < C
    deviation = tl.load(inverse + c, mask=exists, other=0)
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * deviation
    b = tl.load(beta + c, mask=exists, other=0).to(ACC)
    whole = tl.full([BC], 1, ACC)
    if WEIGHTED:
        whole = tl.load(weight_sum + c, mask=exists, other=0).to(ACC)
    of_gamma = tl.zeros([BN, BC], ACC)
    of_beta = tl.zeros([BN, BC], ACC)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        mask = (n < N)[:, None] & exists[None, :]
        at = n[:, None] * C + c[None, :]
        total = _over_pieces(totals, n, c, mask, C, S, ACC)
        moment = _over_pieces(moments, n, c, mask, C, S, ACC)
        gate = tl.sigmoid(tl.load(logits + at, mask=mask, other=0).to(ACC))
        if OF_LOGITS:
            of_gathered = (a[None, :] * moment + b[None, :] * total) * gate * (1 - gate)
            tl.store(grad_gathered + at, of_gathered, mask=mask)
        else:
            of_gathered = tl.load(grad_gathered + at, mask=mask, other=0).to(ACC)
        if OF_NORM:
            t = tl.load(plane + at, mask=mask, other=0)
            of_beta += gate * total + of_gathered * whole[None, :]
            of_gamma += gate * moment + of_gathered * t
    if OF_NORM:
        tl.store(grad_gamma + c, tl.sum(of_gamma, 0) * deviation, mask=exists)
        tl.store(grad_beta + c, tl.sum(of_beta, 0), mask=exists)


@jit
def branch_gradient(
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
    L: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    ROWS: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
    ON_BATCH: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradient of z where the gather is an average."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    n = tl.program_id(2).to(tl.int64)
    exists = c < C
    centre = tl.load(mean + c, mask=exists, other=0)
    deviation = tl.load(inverse + c, mask=exists, other=0)
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * deviation
    scale = a * tl.sigmoid(tl.load(logits + n * C + c, mask=exists, other=0).to(ACC))
    level = a * tl.load(grad_gathered + n * C + c, mask=exists, other=0).to(ACC) / L
    slope = tl.zeros([BC], ACC)
    if ON_BATCH:
        share = a / (tl.full([BC], L, ACC) * N)
        level -= share * tl.load(grad_beta + c, mask=exists, other=0)
        slope = -share * deviation * tl.load(grad_gamma + c, mask=exists, other=0)
    for start in range(0, ROWS, BL):
        row = tl.program_id(1) * ROWS + start + tl.arange(0, BL)
        mask = (row < L)[:, None] & exists[None, :]
        at = n * (C * L) + (row[:, None] * SL + c[None, :] * SC)
        value = tl.load(grad_sum + at, mask=mask, other=0).to(ACC) * scale[None, :] + level[None, :]
        if ON_BATCH:
            value += (tl.load(z + at, mask=mask, other=0).to(ACC) - centre[None, :]) * slope[None, :]
        tl.store(grad_z + at, value, mask=mask)


@jit
def branch_and_weight_gradient(
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
    grad_weight,
    N,
    PER,
    C: tl.constexpr,
    L: tl.constexpr,
    SC: tl.constexpr,
    SL: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
    BC: tl.constexpr,
    ON_BATCH: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradient of z where the gather is weighted, and Σ_n grad_gathered·y over PER images for the weight's, BN at a
    time: a program owns its pixels, so that the sum stays in registers."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    row = tl.program_id(1) * BL + tl.arange(0, BL)
    group = tl.program_id(2)
    exists = c < C
    centre = tl.load(mean + c, mask=exists, other=0)
    deviation = tl.load(inverse + c, mask=exists, other=0)
    a = tl.load(gamma + c, mask=exists, other=0).to(ACC) * deviation
    b = tl.load(beta + c, mask=exists, other=0).to(ACC)
    level = tl.zeros([BC], ACC)
    slope = tl.zeros([BC], ACC)
    if ON_BATCH:
        share = a / (tl.full([BC], L, ACC) * N)
        level -= share * tl.load(grad_beta + c, mask=exists, other=0)
        slope = -share * deviation * tl.load(grad_gamma + c, mask=exists, other=0)
    inside = (row < L)[:, None] & exists[None, :]
    offset = row[:, None] * SL + c[None, :] * SC
    w = tl.load(weight + offset, mask=inside, other=0).to(ACC)
    of_weight = tl.zeros([BL, BC], ACC)
    for start in range(0, PER, BN):
        n = group * PER + start + tl.arange(0, BN)
        known = (n < N)[:, None] & exists[None, :]
        there = inside[None, :, :] & (n < N)[:, None, None]
        at = n.to(tl.int64)[:, None, None] * (C * L) + offset[None, :, :]
        planes = n[:, None] * C + c[None, :]
        scale = a[None, :] * tl.sigmoid(tl.load(logits + planes, mask=known, other=0).to(ACC))
        g = tl.load(grad_gathered + planes, mask=known, other=0).to(ACC)
        d = tl.load(grad_sum + at, mask=there, other=0).to(ACC)
        x = tl.load(z + at, mask=there, other=0).to(ACC) - centre[None, None, :]
        value = d * scale[:, None, :] + level[None, None, :] + (a[None, :] * g)[:, None, :] * w[None, :, :]
        if ON_BATCH:
            value += x * slope[None, None, :]
        tl.store(grad_z + at, value, mask=there)
        of_weight += tl.sum(g[:, None, :] * (a[None, None, :] * x + b[None, None, :]), 0)
    tl.store(grad_weight + group.to(tl.int64) * (C * L) + offset, of_weight, mask=inside)
