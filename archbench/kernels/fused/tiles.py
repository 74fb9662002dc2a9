"""Shared by the three attention kernels: assigning programs, loading tiles, products, and masks.

A head of width D is one or two tiles whose widths are powers of two, D1 + D2 (80 = 64 + 16, 96 = 64 + 32, and D2 = 0 if
D is a power of two), so that tensor cores multiply no padding.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ("batches", "heads", "group", "T", "S", "window", "section", "seed", "dropped")


def unspecialized(*tensors: str, sizes: tuple[str, ...] = SIZES) -> list[str]:
    """Run-time numbers that Triton must not specialise kernels for: sizes, and the strides of ``tensors``.

    Strides are in units of STRIDE_UNIT elements, from which the compiler knows their alignment.
    """
    return [*sizes, *(f"{tensor}_stride_{axis}" for tensor in tensors for axis in "bht")]


@triton.jit
def assign(program, blocks, heads, section):
    """(block, head) of a program.

    Heads are in sections whose keys and values together fit the L2 cache. Within a section the first block of every
    head starts before any second one, so that expensive blocks with low numbers start first.
    """
    first = program // (section * blocks) * section
    width = tl.minimum(section, heads - first)
    rank = program - first * blocks
    return rank // width, first + rank % width


@triton.jit
def load_tile(
    source, base, row, stride, length,
    ROWS: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """Load (ROWS, WIDTH) from ``row`` and column START on; 0 past column D and, if BOUNDED, past row ``length``."""
    columns = START + tl.arange(0, WIDTH)
    offsets = tl.arange(0, ROWS)[:, None] * stride + columns[None, :]
    pointers = source + (base + tl.cast(row, tl.int64) * stride) + offsets
    inside = (row + tl.arange(0, ROWS) < length)[:, None]
    if START + WIDTH > D:
        if BOUNDED:
            return tl.load(pointers, mask=inside & (columns < D)[None, :], other=0.0)
        return tl.load(pointers, mask=(columns < D)[None, :], other=0.0)
    if BOUNDED:
        return tl.load(pointers, mask=inside, other=0.0)
    return tl.load(pointers)


@triton.jit
def load_tiles(
    source, base, batch, head, row, stride, length,
    ROWS: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BOUNDED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Load the (ROWS, D1) and (ROWS, D2) tiles of one head; the first one twice if D2 is 0.

    Args:
        source: a pointer, with ``base`` the head's first element; or, if TMA, a tensor descriptor of all
            (batches, heads, length, D), which reads 0 past the end.
    """
    if TMA:
        first = source.load([batch, head, row, 0]).reshape(ROWS, D1)
        second = first
    else:
        first = load_tile(source, base, row, stride, length, ROWS, 0, D1, D, BOUNDED)
        second = first
        if D2 > 0:
            second = load_tile(source, base, row, stride, length, ROWS, D1, D2, D, BOUNDED)
    return first, second


@triton.jit
def store_tile(
    target, base, row, stride, length, tile,
    ROWS: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write (ROWS, WIDTH) from ``row`` and column START on, up to row ``length`` and column D."""
    columns = START + tl.arange(0, WIDTH)
    offsets = tl.arange(0, ROWS)[:, None] * stride + columns[None, :]
    inside = (row + tl.arange(0, ROWS) < length)[:, None] & (columns < D)[None, :]
    pointers = target + (base + tl.cast(row, tl.int64) * stride) + offsets
    tl.store(pointers, tile.to(target.dtype.element_ty), mask=inside)


@triton.jit
def product(left1, left2, right1, right2, D2: tl.constexpr, PRECISION: tl.constexpr):
    """left rightᵀ in float32, over D1 and then over D2."""
    result = tl.dot(left1, right1.T, input_precision=PRECISION)
    if D2 > 0:
        result = tl.dot(left2, right2.T, result, input_precision=PRECISION)
    return result


@triton.jit
def accumulate(sum1, sum2, weights, tile1, tile2, D2: tl.constexpr, PRECISION: tl.constexpr):
    """The two tiles of sum + weights · tile."""
    weights = weights.to(tile1.dtype)
    sum1 = tl.dot(weights, tile1, sum1, input_precision=PRECISION)
    if D2 > 0:
        sum2 = tl.dot(weights, tile2, sum2, input_precision=PRECISION)
    return sum1, sum2


@triton.jit
def visible(query_positions, key_positions, window, WINDOWED: tl.constexpr):
    """Whether each query sees each key: itself and earlier ones, at most ``window`` positions."""
    seen = key_positions <= query_positions
    if WINDOWED:
        seen = seen & (query_positions - key_positions < window)
    return seen


@triton.jit
def key_phases(first_query, last_query, S, window, BLOCK_S: tl.constexpr, WINDOWED: tl.constexpr):
    """The blocks of keys that the queries at positions first_query … last_query see.

    Returns:
        (start, full_start, full_end, end), all but the last multiples of BLOCK_S: the blocks at the window's left edge
        begin at ``start``, those that every query sees fully at ``full_start``, the diagonal at ``full_end``.
    """
    end = tl.minimum(last_query + 1, S)
    full_end = (first_query + 1) // BLOCK_S * BLOCK_S
    start = 0
    full_start = 0
    if WINDOWED:
        start = tl.maximum(first_query - window + 1, 0) // BLOCK_S * BLOCK_S
        seen_by_all = tl.maximum(last_query - window + 1, 0)
        full_start = tl.minimum(tl.cdiv(seen_by_all, BLOCK_S) * BLOCK_S, tl.cdiv(end, BLOCK_S) * BLOCK_S)
    full_end = tl.maximum(full_end, full_start)
    return start, full_start, full_end, end


@triton.jit
def edge_row(step, full_start, full_end, MASKED: tl.constexpr):
    """The current row of a loop over one phase; the masked loop skips the full blocks."""
    row = step
    if MASKED:
        row = step + tl.where(step >= full_start, full_end - full_start, 0)
    return row
