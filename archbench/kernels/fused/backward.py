"""The backward kernels: recompute the weights block by block from the log-sum-exp of the forward pass.

With P the weights, O = P V and dP = dO Vᵀ:   dV = Pᵀ dO,   dS = P ∘ (dP − delta),   dQ = scale · dS K,
dK = scale · dSᵀ Q, where delta = rowsum(dO ∘ O) (Dao et al. 2022, arXiv:2205.14135, appendix B.4). With dropout, of
mask M made again from its seed and M's elements 0 or 1 / (1 − p): O = (P ∘ M) V, dV = (P ∘ M)ᵀ dO, dP = M ∘ dO Vᵀ, and
delta is the same. There are no atomics: each program owns its output, so that repeated runs agree bit for bit.
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
    load_tile,
    load_tiles,
    product,
    store_tile,
    unspecialized,
    visible,
)


@triton.jit(do_not_specialize=unspecialized("out", "grad", sizes=("heads", "T")))
def delta_kernel(
    out, grad_out, delta,
    out_stride_b, out_stride_h, out_stride_t, grad_stride_b, grad_stride_h, grad_stride_t,
    heads, T,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, STRIDE_UNIT: tl.constexpr,
):  # fmt: skip
    """delta (B, H, T) float32 = rowsum(out ∘ grad_out), both (B, H, T, D)."""
    blocks = tl.cdiv(T, BLOCK_T)
    first, index = tl.program_id(0) % blocks * BLOCK_T, tl.program_id(0) // blocks
    batch, head = (index // heads).to(tl.int64), (index % heads).to(tl.int64)
    out_base = (batch * out_stride_b + head * out_stride_h) * STRIDE_UNIT
    grad_base = (batch * grad_stride_b + head * grad_stride_h) * STRIDE_UNIT
    out_tile = load_tile(out, out_base, first, out_stride_t * STRIDE_UNIT, T, BLOCK_T, 0, WIDTH, D, True)
    grad_tile = load_tile(grad_out, grad_base, first, grad_stride_t * STRIDE_UNIT, T, BLOCK_T, 0, WIDTH, D, True)
    rows = first + tl.arange(0, BLOCK_T)
    row_sums = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    tl.store(delta + index.to(tl.int64) * T + rows, row_sums, mask=rows < T)


@triton.jit
def load_row(source, rows, T, BOUNDED: tl.constexpr):
    if BOUNDED:
        return tl.load(source + rows, mask=rows < T, other=0.0)
    return tl.load(source + rows)


@triton.jit
def collect_for_keys(
    grad_k1, grad_k2, grad_v1, grad_v2, k1, k2, v1, v2, q, grad_out, lse, delta, q_base, grad_base, batch, head,
    q_stride, grad_stride, first_key, start, full_start, full_end, end, T, window, scale_log2e,
    offset, seed, plane, dropped, kept_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """One phase of one query head: add the gradients from queries ``start`` to ``end`` to dK and dV.

    Scores are transposed, (keys, queries), so that the weights are the left operand of both products.
    """
    for step in tl.range(start, end, BLOCK_T, disable_licm=TMA):  # hoisting would spill
        row = edge_row(step, full_start, full_end, MASKED)
        rows = row + tl.arange(0, BLOCK_T)
        q1, q2 = load_tiles(q, q_base, batch, head, row, q_stride, T, BLOCK_T, D, D1, D2, MASKED, TMA)
        g1, g2 = load_tiles(grad_out, grad_base, batch, head, row, grad_stride, T, BLOCK_T, D, D1, D2, MASKED, TMA)
        scores = product(k1, k2, q1, q2, D2, PRECISION)  # (BLOCK_S, BLOCK_T)
        row_lse = load_row(lse, rows, T, MASKED)
        if MASKED:
            seen = visible(rows[None, :], (first_key + tl.arange(0, BLOCK_S))[:, None], window, WINDOWED)
            scores = tl.where(seen, scores, -float("inf"))
        weights = tl.exp2(scores * scale_log2e - row_lse[None, :])
        grad_weights = product(v1, v2, g1, g2, D2, PRECISION)  # (BLOCK_S, BLOCK_T)
        row_delta = load_row(delta, rows, T, MASKED)
        if DROPOUT:
            kept = keep(seed, plane, rows + offset, (first_key + offset) // 8, dropped, BLOCK_T, BLOCK_S).T
            grad_weights = tl.where(kept, grad_weights * kept_scale, 0.0)
        grad_scores = weights * (grad_weights - row_delta[None, :])
        if DROPOUT:
            weights = tl.where(kept, weights * kept_scale, 0.0)
        grad_v1, grad_v2 = accumulate(grad_v1, grad_v2, weights, g1, g2, D2, PRECISION)
        grad_k1, grad_k2 = accumulate(grad_k1, grad_k2, grad_scores, q1, q2, D2, PRECISION)
    return grad_k1, grad_k2, grad_v1, grad_v2


@triton.jit(do_not_specialize=unspecialized("q", "k", "v", "grad", "grad_k", "grad_v"))
def key_gradient_kernel(
    q, k, v, grad_out, lse, delta, grad_k, grad_v,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t, grad_stride_b, grad_stride_h, grad_stride_t,
    grad_k_stride_b, grad_k_stride_h, grad_k_stride_t, grad_v_stride_b, grad_v_stride_h, grad_v_stride_t,
    batches, heads, group, T, S, window, section, scale, scale_log2e, seed, dropped, kept_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    WINDOWED: tl.constexpr, STRIDE_UNIT: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """grad_k and grad_v (B, G, S, D): one program per block of keys of a key/value head.

    It loops over the ``group`` query heads that share the keys, so that no buffer per query head is needed.
    """
    if DROPOUT:
        seed = seed_number(seed)
    kv_heads = heads // group
    block, index = assign(tl.program_id(0), tl.cdiv(S, BLOCK_S), batches * kv_heads, section)
    batch, kv_head = index // kv_heads, index % kv_heads
    q_stride, k_stride = q_stride_t * STRIDE_UNIT, k_stride_t * STRIDE_UNIT
    v_stride, grad_stride = v_stride_t * STRIDE_UNIT, grad_stride_t * STRIDE_UNIT
    k_base = (batch.to(tl.int64) * k_stride_b + kv_head.to(tl.int64) * k_stride_h) * STRIDE_UNIT
    v_base = (batch.to(tl.int64) * v_stride_b + kv_head.to(tl.int64) * v_stride_h) * STRIDE_UNIT

    first = block * BLOCK_S  # the first keys are seen by most queries: the heavy ones first
    offset = S - T
    first_key = first - offset
    last = tl.minimum(first + BLOCK_S, S) - 1
    # Queries from `start` on see a key of this block, from `full_start` to `full_end` every one, up to `end` some.
    start = tl.maximum(first - offset, 0) // BLOCK_T * BLOCK_T
    full_start = tl.cdiv(tl.maximum(last - offset, 0), BLOCK_T) * BLOCK_T
    full_end = T // BLOCK_T * BLOCK_T
    end = T
    if WINDOWED:
        full_end = tl.maximum(tl.minimum(T, first + window - offset), 0) // BLOCK_T * BLOCK_T
        end = tl.minimum(T, last + window - offset)
    full_end = tl.maximum(full_end, full_start)

    k1, k2 = load_tiles(k, k_base, batch, kv_head, first, k_stride, S, BLOCK_S, D, D1, D2, True, False)
    v1, v2 = load_tiles(v, v_base, batch, kv_head, first, v_stride, S, BLOCK_S, D, D1, D2, True, False)
    grad_k1 = tl.zeros([BLOCK_S, D1], tl.float32)
    grad_k2 = tl.zeros([BLOCK_S, D2 if D2 > 0 else D1], tl.float32)
    grad_v1 = tl.zeros([BLOCK_S, D1], tl.float32)
    grad_v2 = tl.zeros([BLOCK_S, D2 if D2 > 0 else D1], tl.float32)
    head = kv_head * group
    lse += (batch * heads + head).to(tl.int64) * T
    delta += (batch * heads + head).to(tl.int64) * T
    for _ in tl.range(0, group, disable_licm=TMA):
        q_base = (batch.to(tl.int64) * q_stride_b + head.to(tl.int64) * q_stride_h) * STRIDE_UNIT
        grad_base = (batch.to(tl.int64) * grad_stride_b + head.to(tl.int64) * grad_stride_h) * STRIDE_UNIT
        grad_k1, grad_k2, grad_v1, grad_v2 = collect_for_keys(
            grad_k1, grad_k2, grad_v1, grad_v2, k1, k2, v1, v2,
            q, grad_out, lse, delta, q_base, grad_base, batch, head, q_stride, grad_stride,
            first_key, start, full_start, full_end, end - (full_end - full_start), T, window, scale_log2e,
            offset, seed, batch * heads + head, dropped, kept_scale,
            D, D1, D2, BLOCK_T, BLOCK_S, True, WINDOWED, TMA, PRECISION, DROPOUT,
        )  # fmt: skip
        grad_k1, grad_k2, grad_v1, grad_v2 = collect_for_keys(
            grad_k1, grad_k2, grad_v1, grad_v2, k1, k2, v1, v2,
            q, grad_out, lse, delta, q_base, grad_base, batch, head, q_stride, grad_stride,
            first_key, full_start, full_start, full_end, full_end, T, window, scale_log2e,
            offset, seed, batch * heads + head, dropped, kept_scale,
            D, D1, D2, BLOCK_T, BLOCK_S, False, WINDOWED, TMA, PRECISION, DROPOUT,
        )  # fmt: skip
        head += 1
        lse += T
        delta += T

    grad_k_base = (batch.to(tl.int64) * grad_k_stride_b + kv_head.to(tl.int64) * grad_k_stride_h) * STRIDE_UNIT
    grad_v_base = (batch.to(tl.int64) * grad_v_stride_b + kv_head.to(tl.int64) * grad_v_stride_h) * STRIDE_UNIT
    grad_k_stride, grad_v_stride = grad_k_stride_t * STRIDE_UNIT, grad_v_stride_t * STRIDE_UNIT
    store_tile(grad_k, grad_k_base, first, grad_k_stride, S, grad_k1 * scale, BLOCK_S, 0, D1, D)
    store_tile(grad_v, grad_v_base, first, grad_v_stride, S, grad_v1, BLOCK_S, 0, D1, D)
    if D2 > 0:
        store_tile(grad_k, grad_k_base, first, grad_k_stride, S, grad_k2 * scale, BLOCK_S, D1, D2, D)
        store_tile(grad_v, grad_v_base, first, grad_v_stride, S, grad_v2, BLOCK_S, D1, D2, D)


@triton.jit
def collect_for_queries(
    grad_q1, grad_q2, q1, q2, g1, g2, row_lse, row_delta, k, v, k_base, v_base, batch, kv_head, k_stride, v_stride,
    query_positions, start, full_start, full_end, end, S, window, scale_log2e, seed, plane, dropped, kept_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """One phase: add the gradients from keys ``start`` to ``end`` to dQ."""
    for step in tl.range(start, end, BLOCK_S, disable_licm=TMA):
        row = edge_row(step, full_start, full_end, MASKED)
        k1, k2 = load_tiles(k, k_base, batch, kv_head, row, k_stride, S, BLOCK_S, D, D1, D2, MASKED, TMA)
        v1, v2 = load_tiles(v, v_base, batch, kv_head, row, v_stride, S, BLOCK_S, D, D1, D2, MASKED, TMA)
        scores = product(q1, q2, k1, k2, D2, PRECISION)  # (BLOCK_T, BLOCK_S)
        if MASKED:
            key_positions = row + tl.arange(0, BLOCK_S)
            seen = visible(query_positions[:, None], key_positions[None, :], window, WINDOWED)
            scores = tl.where(seen, scores, -float("inf"))
        weights = tl.exp2(scores * scale_log2e - row_lse[:, None])
        grad_weights = product(g1, g2, v1, v2, D2, PRECISION)  # (BLOCK_T, BLOCK_S)
        if DROPOUT:
            kept = keep(seed, plane, query_positions, row // 8, dropped, BLOCK_T, BLOCK_S)
            grad_weights = tl.where(kept, grad_weights * kept_scale, 0.0)
        grad_scores = weights * (grad_weights - row_delta[:, None])
        grad_q1, grad_q2 = accumulate(grad_q1, grad_q2, grad_scores, k1, k2, D2, PRECISION)
    return grad_q1, grad_q2


@triton.jit(do_not_specialize=unspecialized("q", "k", "v", "grad", "grad_q"))
def query_gradient_kernel(
    q, k, v, grad_out, lse, delta, grad_q,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t, grad_stride_b, grad_stride_h, grad_stride_t,
    grad_q_stride_b, grad_q_stride_h, grad_q_stride_t,
    batches, heads, group, T, S, window, section, scale, scale_log2e, seed, dropped, kept_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    WINDOWED: tl.constexpr, STRIDE_UNIT: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """grad_q (B, H, T, D): one program per block of queries of a head."""
    if DROPOUT:
        seed = seed_number(seed)
    blocks = tl.cdiv(T, BLOCK_T)
    order, index = assign(tl.program_id(0), blocks, batches * heads, section)
    block = blocks - 1 - order  # the last block sees most keys: the heavy ones first
    batch, head = index // heads, index % heads
    kv_head = head // group
    q_stride, k_stride = q_stride_t * STRIDE_UNIT, k_stride_t * STRIDE_UNIT
    v_stride, grad_stride = v_stride_t * STRIDE_UNIT, grad_stride_t * STRIDE_UNIT
    q_base = (batch.to(tl.int64) * q_stride_b + tl.cast(head, tl.int64) * q_stride_h) * STRIDE_UNIT
    k_base = (batch.to(tl.int64) * k_stride_b + kv_head.to(tl.int64) * k_stride_h) * STRIDE_UNIT
    v_base = (batch.to(tl.int64) * v_stride_b + kv_head.to(tl.int64) * v_stride_h) * STRIDE_UNIT
    grad_base = (batch.to(tl.int64) * grad_stride_b + head.to(tl.int64) * grad_stride_h) * STRIDE_UNIT

    first = block * BLOCK_T
    offset = S - T
    rows = first + tl.arange(0, BLOCK_T)
    last_query = tl.minimum(first + BLOCK_T, T) - 1 + offset
    start, full_start, full_end, end = key_phases(first + offset, last_query, S, window, BLOCK_S, WINDOWED)

    q1, q2 = load_tiles(q, q_base, batch, head, first, q_stride, T, BLOCK_T, D, D1, D2, True, False)
    g1, g2 = load_tiles(grad_out, grad_base, batch, head, first, grad_stride, T, BLOCK_T, D, D1, D2, True, False)
    head_rows = index.to(tl.int64) * T
    row_lse = tl.load(lse + head_rows + rows, mask=rows < T, other=float("inf"))  # whose weights are then all 0
    row_delta = tl.load(delta + head_rows + rows, mask=rows < T, other=0.0)
    grad_q1 = tl.zeros([BLOCK_T, D1], tl.float32)
    grad_q2 = tl.zeros([BLOCK_T, D2 if D2 > 0 else D1], tl.float32)
    grad_q1, grad_q2 = collect_for_queries(
        grad_q1, grad_q2, q1, q2, g1, g2, row_lse, row_delta, k, v, k_base, v_base, batch, kv_head,
        k_stride, v_stride, rows + offset, full_start, full_start, full_end, full_end, S, window, scale_log2e,
        seed, index, dropped, kept_scale,
        D, D1, D2, BLOCK_T, BLOCK_S, False, WINDOWED, TMA, PRECISION, DROPOUT,
    )  # fmt: skip
    grad_q1, grad_q2 = collect_for_queries(
        grad_q1, grad_q2, q1, q2, g1, g2, row_lse, row_delta, k, v, k_base, v_base, batch, kv_head, k_stride, v_stride,
        rows + offset, start, full_start, full_end, end - (full_end - full_start), S, window, scale_log2e,
        seed, index, dropped, kept_scale,
        D, D1, D2, BLOCK_T, BLOCK_S, True, WINDOWED, TMA, PRECISION, DROPOUT,
    )  # fmt: skip

    grad_q_base = (batch.to(tl.int64) * grad_q_stride_b + head.to(tl.int64) * grad_q_stride_h) * STRIDE_UNIT
    grad_q_stride = grad_q_stride_t * STRIDE_UNIT
    store_tile(grad_q, grad_q_base, first, grad_q_stride, T, grad_q1 * scale, BLOCK_T, 0, D1, D)
    if D2 > 0:
        store_tile(grad_q, grad_q_base, first, grad_q_stride, T, grad_q2 * scale, BLOCK_T, D1, D2, D)
