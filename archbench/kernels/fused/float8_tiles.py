"""A matrix in float8 twice, along its rows and along its columns: one read and two writes, tile by tile."""

from __future__ import annotations

import triton
import triton.language as tl

TILE = 64


@triton.jit(do_not_specialize=["M"])
def quantise_kernel(
    x, largest, scale, values, transposed, M, K, stride, M16, K16,
    TILE: tl.constexpr, FOUND: tl.constexpr, LEAST: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """values (M16, K16) and transposed (K16, M16) are x (M, K), whose rows are ``stride`` apart, divided by scale ().

    Unless FOUND, scale is written: the power of two of largest (), which is at least LEAST, divided by TOP.
    M16 and K16 are M and K filled up to multiples of 16, by zeros. If K is such a multiple, loads are wide.
    """
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (rows[:, None] < M) & (columns[None, :] < K)
    tile = tl.load(x + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if FOUND:
        divisor = tl.load(scale)
    else:
        most = tl.load(largest)
        power = tl.where(most < LEAST, LEAST, most).to(tl.int32, bitcast=True) & 0x7F800000  # NaN's is infinity
        divisor = power.to(tl.float32, bitcast=True) / TOP
        tl.store(scale, divisor, mask=(tl.program_id(0) == 0) & (tl.program_id(1) == 0))
    rounded = (tile / divisor).to(values.dtype.element_ty)
    filled = (rows[:, None] < M16) & (columns[None, :] < K16)
    tl.store(values + rows[:, None] * K16 + columns[None, :], rounded, mask=filled)
    filled = (columns[:, None] < K16) & (rows[None, :] < M16)
    tl.store(transposed + columns[:, None] * M16 + rows[None, :], tl.trans(rounded), mask=filled)
