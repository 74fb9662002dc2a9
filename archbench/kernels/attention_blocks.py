"""Causal attention on CPUs, by matrix products of blocks of queries with the keys that they see.

    q (B, H, T, D), k and v (B, G, S, D)  ->  (B, H, T, D)

Torch's CPU kernel goes through keys in steps of 512 and computes all of a step, so that up to T = 512 a causal mask
saves nothing. Here each block of queries meets only the keys before its end: at T = 512 nine sixteenths of the square.
The products of many heads are one call, and the softmax is done in place. No T × S weights are kept: backward makes
each block's again, from q, k and v alone, and dropout's mask from its seed. A block has at most :data:`BLOCK_ELEMENTS`
weights, unless one head's queries alone have more.

The readable twin is :func:`archbench.kernels.attention_torch.reference_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.dropout import LEVELS, random_int16
from archbench.kernels.dropout_bits import dropped_levels, kept_scale, new_seed
from archbench.kernels.precision import autocast_dtype, exact_dtype, without_autocast

ROWS = 64
"""Queries of one head in a block."""

BLOCK_ELEMENTS = 2**20
"""Weights of a block, of as many heads as that allows: 4 MiB in float32."""

Part = tuple[slice, slice]
"""Some of the sequences, and some of the heads."""


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, scale: float, dropout: float = 0.0
) -> Tensor:
    """Causal attention by blocks; differentiable once.

    Args:
        q: queries (B, H, T, D), any strides and floating dtype.
        k, v: (B, G, S, D).
        window: positions that each position sees, itself included; None for all.
        scale: factor of the scores.
        dropout: probability of dropping a weight, rounded to a multiple of 1/65,536. The mask is made from a seed of
            torch's default generator.

    Returns:
        (B, H, T, D), stored as (B, T, H, D): merging the heads copies nothing.
    """
    if (dtype := autocast_dtype(q)) is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    dropped = dropped_levels(dropout)
    with without_autocast(q):
        out: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
            q, k, v, window, scale, dropped, int(new_seed()) if dropped else 0
        )
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, dropped: int, seed: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.others = window, scale, dropped, seed
        out, masks = _empty_like(q), _Masks(dropped, seed)
        for some_q, some_kv in _parts(q, k, window):
            keys, values = k[some_kv].flatten(0, 1), v[some_kv].flatten(0, 1)  # (N, S, D), of N heads of k
            for rows, seen in _blocks(q, k, window):
                queries = _stacked(q[some_q][:, :, rows], len(keys), scale)  # (N, H/G rows, D)
                weights = _weights(queries, keys[:, seen], rows, window)  # (N, H/G rows, seen)
                weights = _dropped(weights, masks.next(weights))
                _put(torch.bmm(weights, values[:, seen]), out[some_q][:, :, rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        window, scale, dropped, seed = ctx.others
        grad_q, grad_k, grad_v = _empty_like(q), _empty_like(k), _empty_like(v)
        masks = _Masks(dropped, seed)
        for some_q, some_kv in _parts(q, k, window):
            keys, values = k[some_kv].flatten(0, 1), v[some_kv].flatten(0, 1)
            for_keys, for_values = (x.new_zeros(x.shape, dtype=exact_dtype(x.dtype)) for x in (keys, values))
            for rows, seen in _blocks(q, k, window):
                queries = _stacked(q[some_q][:, :, rows], len(keys), scale)
                upstream = _stacked(grad_out[some_q][:, :, rows], len(keys))
                weights = _weights(queries, keys[:, seen], rows, window)
                mask = masks.next(weights)
                for_values[:, seen] += torch.bmm(_dropped(weights, mask).mT, upstream)
                for_weights = _dropped(torch.bmm(upstream, values[:, seen].mT), mask)
                # In place: for_scores = weights * (for_weights - (weights * for_weights).sum(-1, keepdim=True))
                for_scores = torch._softmax_backward_data(
                    for_weights, weights, -1, weights.dtype, grad_input=for_weights
                )
                for_keys[:, seen] += torch.bmm(for_scores.mT, queries)
                _put(torch.bmm(for_scores, keys[:, seen]).mul_(scale), grad_q[some_q][:, :, rows])
            _put(for_keys, grad_k[some_kv])
            _put(for_values, grad_v[some_kv])
        return grad_q, grad_k, grad_v, None, None, None, None


def _parts(q: Tensor, k: Tensor, window: int | None) -> Iterator[tuple[Part, Part]]:
    """What is computed at once, of q and of k and v: sequences or, if one is too much, some heads of one."""
    (B, H, T, _), (G, S) = q.shape, k.shape[1:3]
    shared = H // G
    seen = S if window is None else min(S, window + ROWS)
    most = max(1, BLOCK_ELEMENTS // (min(T, ROWS) * seen * shared))  # heads of k
    for sequences in _split(B, most // G):
        for groups in _split(G, most):
            heads = slice(groups.start * shared, groups.stop * shared)
            yield (sequences, heads), (sequences, groups)


def _split(total: int, most: int) -> list[slice]:
    """Slices of at most ``most``, at least 1, of lengths as equal as they can be."""
    pieces = -(-total // max(1, most))
    return [slice(total * i // pieces, total * (i + 1) // pieces) for i in range(pieces)]


def _blocks(q: Tensor, k: Tensor, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, and the keys that some query of the block sees."""
    T, S = q.shape[2], k.shape[2]
    for start in range(0, T, ROWS):
        stop = min(start + ROWS, T)
        first = 0 if window is None else max(0, S - T + start - window + 1)
        yield slice(start, stop), slice(first, S - T + stop)


def _weights(queries: Tensor, keys: Tensor, rows: slice, window: int | None) -> Tensor:
    """softmax(queries keysᵀ) over the keys that each query sees; the block's last query sees the last key."""
    weights = torch.bmm(queries, keys.mT)
    n, seen = rows.stop - rows.start, keys.shape[1]
    scores = weights.view(len(keys), -1, n, seen)
    scores[..., seen - n :] += _hidden(n, n, weights).triu_(1)  # after the query
    if window is not None and seen > window:
        scores[..., : seen - window] += _hidden(n, seen - window, weights).tril_(seen - n - window)  # before its window
    return torch._softmax(weights, -1, False, out=weights)


def _hidden(n: int, m: int, like: Tensor) -> Tensor:
    return like.new_full((n, m), -math.inf)


def _stacked(x: Tensor, N: int, scale: float = 1.0) -> Tensor:
    """scale · x, (B', N' H/G, n, D) -> (N, H/G n, D): the heads that share keys, one below the other."""
    return torch.mul(x, scale, out=x.new_empty(x.shape)).view(N, -1, x.shape[-1])


def _put(x: Tensor, place: Tensor) -> None:
    place.copy_(x.view(place.shape))


def _empty_like(x: Tensor) -> Tensor:
    """(B, H, T, D), stored as (B, T, H, D)."""
    B, H, T, D = x.shape
    return x.new_empty(B, T, H, D).transpose(1, 2)


def _dropped(weights: Tensor, mask: Tensor | None) -> Tensor:
    return weights if mask is None else weights * mask


class _Masks:
    """Dropout's masks of one block after another, the same in both passes."""

    def __init__(self, dropped: int, seed: int) -> None:
        self.levels = dropped
        self.generator = torch.Generator().manual_seed(seed) if dropped else None

    def next(self, weights: Tensor) -> Tensor | None:
        """What the next block's weights are multiplied with."""
        if self.generator is None:
            return None
        keep = random_int16(weights.numel(), self.generator).view(weights.shape) >= self.levels - LEVELS // 2
        return keep.view(torch.uint8).to(weights.dtype).mul_(kept_scale(self.levels))
