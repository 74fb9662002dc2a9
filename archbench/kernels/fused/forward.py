"""The forward kernel: online softmax over blocks of keys, one program per block of queries of a head.

Sources: Milakov and Gimelshein 2018 (arXiv:1805.02867), the online softmax; Dao et al. 2022 (arXiv:2205.14135) and
Dao 2023 (arXiv:2307.08691), attention in blocks, without holding the (T, S) scores. See docs/explanation/kernels.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from archbench.kernels.fused.randomness import keep, seed_number
from archbench.kernels.fused.tiles import (
    accumulate,
    assign,
    edge_row,
    key_phases,
    load_tiles,
    product,
    store_tile,
    unspecialized,
    visible,
)


@triton.jit
def attend(
    sum1, sum2, total, maximum, q1, q2, k, v, k_base, v_base, batch, kv_head, k_stride, v_stride,
    query_positions, start, full_start, full_end, end, S, window, scale_log2e, seed, plane, dropped,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr, DROPOUT: tl.constexpr,
    SPECIALIZED: tl.constexpr,
):  # fmt: skip
    """One phase: the keys from ``full_start`` to ``full_end``; if MASKED, those before and after, up to ``end``."""
    for step in tl.range(start, end, BLOCK_S, disable_licm=TMA, warp_specialize=SPECIALIZED):
        row = edge_row(step, full_start, full_end, MASKED)
        k1, k2 = load_tiles(k, k_base, batch, kv_head, row, k_stride, S, BLOCK_S, D, D1, D2, MASKED, TMA)
        scores = product(q1, q2, k1, k2, D2, PRECISION)  # (BLOCK_T, BLOCK_S)
        if MASKED:
            key_positions = row + tl.arange(0, BLOCK_S)
            seen = visible(query_positions[:, None], key_positions[None, :], window, WINDOWED)
            scores = tl.where(seen, scores, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * scale_log2e)
        reference = new_maximum
        if MASKED and WINDOWED:  # a row that has seen no key yet would subtract infinity from infinity
            reference = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        weights = tl.exp2(scores * scale_log2e - reference[:, None])
        rescale = tl.exp2(maximum - reference)
        total = total * rescale + tl.sum(weights, 1)
        if DROPOUT:  # the sum is of all weights
            kept = keep(seed, plane, query_positions, row // 8, dropped, BLOCK_T, BLOCK_S)
            weights = tl.where(kept, weights, 0.0)
        sum1 = sum1 * rescale[:, None]
        if D2 > 0:
            sum2 = sum2 * rescale[:, None]
        v1, v2 = load_tiles(v, v_base, batch, kv_head, row, v_stride, S, BLOCK_S, D, D1, D2, MASKED, TMA)
        sum1, sum2 = accumulate(sum1, sum2, weights, v1, v2, D2, PRECISION)
        maximum = new_maximum
    return sum1, sum2, total, maximum


@triton.jit
def forward_tile(
    tile, blocks, q, k, v, out, lse,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t, out_stride_b, out_stride_h, out_stride_t,
    batches, heads, group, T, S, window, section, scale_log2e, seed, dropped, kept_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    WINDOWED: tl.constexpr, STRIDE_UNIT: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    DROPOUT: tl.constexpr, SPECIALIZED: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head: the ``tile``-th in the order of :func:`assign`; ``blocks`` are a head's."""
    order, index = assign(tile, blocks, batches * heads, section)
    block = blocks - 1 - order  # the last block sees most keys: the heavy ones first
    batch, head = index // heads, index % heads
    kv_head = head // group
    q_stride, k_stride = q_stride_t * STRIDE_UNIT, k_stride_t * STRIDE_UNIT
    v_stride, out_stride = v_stride_t * STRIDE_UNIT, out_stride_t * STRIDE_UNIT
    q_base = (batch.to(tl.int64) * q_stride_b + head.to(tl.int64) * q_stride_h) * STRIDE_UNIT
    k_base = (batch.to(tl.int64) * k_stride_b + kv_head.to(tl.int64) * k_stride_h) * STRIDE_UNIT
    v_base = (batch.to(tl.int64) * v_stride_b + kv_head.to(tl.int64) * v_stride_h) * STRIDE_UNIT
    out_base = (batch.to(tl.int64) * out_stride_b + head.to(tl.int64) * out_stride_h) * STRIDE_UNIT

    first = block * BLOCK_T
    offset = S - T  # the queries are the last T of the S positions
    query_positions = first + offset + tl.arange(0, BLOCK_T)
    last_query = tl.minimum(first + BLOCK_T, T) - 1 + offset
    start, full_start, full_end, end = key_phases(first + offset, last_query, S, window, BLOCK_S, WINDOWED)

    if SPECIALIZED:
        queries = tl.make_tensor_descriptor(q + q_base, [T, D1], [tl.cast(q_stride, tl.int64), 1], [BLOCK_T, D1])
        q1 = queries.load([first, 0])
        q2 = q1
        full_end = full_start  # Triton divides the warps' work only where there is one loop: all of it is masked
    else:
        q1, q2 = load_tiles(q, q_base, batch, head, first, q_stride, T, BLOCK_T, D, D1, D2, True, False)
    maximum = tl.full([BLOCK_T], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    sum1 = tl.zeros([BLOCK_T, D1], tl.float32)
    sum2 = tl.zeros([BLOCK_T, D2 if D2 > 0 else D1], tl.float32)
    if not SPECIALIZED:
        sum1, sum2, total, maximum = attend(
            sum1, sum2, total, maximum, q1, q2, k, v, k_base, v_base, batch, kv_head, k_stride, v_stride,
            query_positions, full_start, full_start, full_end, full_end, S, window, scale_log2e, seed, index, dropped,
            D, D1, D2, BLOCK_T, BLOCK_S, False, WINDOWED, TMA, PRECISION, DROPOUT, False,
        )  # fmt: skip
    sum1, sum2, total, maximum = attend(
        sum1, sum2, total, maximum, q1, q2, k, v, k_base, v_base, batch, kv_head, k_stride, v_stride,
        query_positions, start, full_start, full_end, end - (full_end - full_start), S, window, scale_log2e,
        seed, index, dropped,
        D, D1, D2, BLOCK_T, BLOCK_S, True, WINDOWED, TMA, PRECISION, DROPOUT, SPECIALIZED,
    )  # fmt: skip

    divisor = total
    if DROPOUT:
        divisor = total / kept_scale
    store_tile(out, out_base, first, out_stride, T, sum1 / divisor[:, None], BLOCK_T, 0, D1, D)
    if D2 > 0:
        store_tile(out, out_base, first, out_stride, T, sum2 / divisor[:, None], BLOCK_T, D1, D2, D)
    rows = first + tl.arange(0, BLOCK_T)
    tl.store(lse + index.to(tl.int64) * T + rows, maximum + tl.log2(total), mask=rows < T)


@triton.jit(do_not_specialize=unspecialized("q", "k", "v", "out"))
def forward_kernel(
    q, k, v, out, lse,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t, out_stride_b, out_stride_h, out_stride_t,
    batches, heads, group, T, S, window, section, scale_log2e, seed, dropped, kept_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    WINDOWED: tl.constexpr, STRIDE_UNIT: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    DROPOUT: tl.constexpr, PERSISTENT: tl.constexpr, SPECIALIZED: tl.constexpr,
):  # fmt: skip
    """out (B, H, T, D) and lse (B, H, T) float32, in powers of two, of q (B, H, T, D), k and v (B, G, S, D).

    A program has one block of queries; if PERSISTENT, every so many-th of them. If SPECIALIZED, some of its warps load
    what the others multiply.
    """
    blocks = tl.cdiv(T, BLOCK_T)
    if DROPOUT:
        seed = seed_number(seed)
    if PERSISTENT:
        for tile in tl.range(tl.program_id(0), blocks * batches * heads, tl.num_programs(0)):
            forward_tile(
                tile, blocks, q, k, v, out, lse,
                q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
                v_stride_b, v_stride_h, v_stride_t, out_stride_b, out_stride_h, out_stride_t,
                batches, heads, group, T, S, window, section, scale_log2e, seed, dropped, kept_scale,
                D, D1, D2, BLOCK_T, BLOCK_S, WINDOWED, STRIDE_UNIT, TMA, PRECISION, DROPOUT, SPECIALIZED,
            )  # fmt: skip
    else:
        forward_tile(
            tl.program_id(0), blocks, q, k, v, out, lse,
            q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
            v_stride_b, v_stride_h, v_stride_t, out_stride_b, out_stride_h, out_stride_t,
            batches, heads, group, T, S, window, section, scale_log2e, seed, dropped, kept_scale,
            D, D1, D2, BLOCK_T, BLOCK_S, WINDOWED, STRIDE_UNIT, TMA, PRECISION, DROPOUT, SPECIALIZED,
        )  # fmt: skip
