"""Dropout, residual and LayerNorm in one pass over a row, and all their gradients in another.

Source of the gradient: Ba, Kiros and Hinton 2016 (arXiv:1607.06450); docs/explanation/kernels.md derives it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archbench.kernels.fused.randomness import keep, seed_number

SIZES = ["N", "dropped", "seed", "rows_each"]


@triton.jit
def dropped_row(values, seed, row, dropped, scale, BLOCK: tl.constexpr):
    """(BLOCK,) values of one row, of which some are zero and the others scaled."""
    kept = keep(seed, 0, row + tl.zeros([1], tl.int32), 0, dropped, 1, BLOCK).reshape(BLOCK)
    return tl.where(kept, values * scale, 0.0)


@triton.jit(do_not_specialize=SIZES)
def residual_norm_kernel(
    x, y, weight, bias, out, narrow, total, mean, deviation,
    N, seed, dropped, scale, eps,
    C: tl.constexpr, BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr, NARROW: tl.constexpr, SHIFTED: tl.constexpr, TRAINED: tl.constexpr,
):  # fmt: skip
    """out = LayerNorm(x + dropout(y)), in float32 and in narrow's dtype; of one row per program.

    x (N, C) and out float32, y and narrow (N, C). Kept for the gradient: total (N, C), mean (N,), and deviation (N,),
    which is 1 / sqrt(variance + eps).
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < C
    places = row.to(tl.int64) * C + columns
    added = tl.load(y + places, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        added = dropped_row(added, seed_number(seed), row, dropped, scale, BLOCK)
    summed = tl.load(x + places, mask=inside, other=0.0) + added
    centre = tl.sum(summed, 0) / C
    centred = tl.where(inside, summed - centre, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps)
    normed = centred * inverse * tl.load(weight + columns, mask=inside, other=0.0)
    if SHIFTED:
        normed += tl.load(bias + columns, mask=inside, other=0.0)
    tl.store(out + places, normed, mask=inside)
    if NARROW:
        tl.store(narrow + places, normed.to(narrow.dtype.element_ty), mask=inside)
    if TRAINED:
        tl.store(total + places, summed, mask=inside)
        tl.store(mean + row, centre)
        tl.store(deviation + row, inverse)


@triton.jit(do_not_specialize=SIZES)
def residual_norm_gradient_kernel(
    grad_out, grad_narrow, total, mean, deviation, weight, grad_x, grad_y, sums,
    N, rows_each, seed, dropped, scale,
    C: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Gradients of x, float32, and of y, in its dtype; of ``rows_each`` rows per program.

    sums (programs, 3, C) float32: of each program's rows, the gradients of weight and bias, and the column sums of
    y's gradient, which is that of a bias that y ends with.
    """
    if DROPOUT:
        seed = seed_number(seed)
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < C
    gain = tl.load(weight + columns, mask=inside, other=0.0)
    for_weight = tl.zeros([BLOCK], tl.float32)
    for_bias = tl.zeros([BLOCK], tl.float32)
    for_y = tl.zeros([BLOCK], tl.float32)
    for row in range(program * rows_each, tl.minimum((program + 1) * rows_each, N)):
        places = tl.cast(row, tl.int64) * C + columns
        gradient = tl.zeros([BLOCK], tl.float32)
        if WIDE:
            gradient += tl.load(grad_out + places, mask=inside, other=0.0)
        if NARROW:
            gradient += tl.load(grad_narrow + places, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(deviation + row)
        summed = tl.load(total + places, mask=inside, other=0.0)
        normed = tl.where(inside, (summed - tl.load(mean + row)) * inverse, 0.0)
        for_weight += gradient * normed
        for_bias += gradient
        scaled = gradient * gain
        through_mean = tl.sum(scaled, 0) / C
        through_deviation = tl.sum(scaled * normed, 0) / C
        back = (scaled - through_mean - normed * through_deviation) * inverse
        tl.store(grad_x + places, back, mask=inside)
        if DROPOUT:
            back = dropped_row(back, seed, row, dropped, scale, BLOCK)
        tl.store(grad_y + places, back.to(grad_y.dtype.element_ty), mask=inside)
        for_y += back
    base = sums + tl.cast(program, tl.int64) * 3 * C + columns
    tl.store(base, for_weight, mask=inside)
    tl.store(base + C, for_bias, mask=inside)
    tl.store(base + 2 * C, for_y, mask=inside)
