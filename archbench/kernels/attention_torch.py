"""Causal attention by PyTorch: matrix products, its fused kernels, and FlexAttention.

All take q (B, H, T, D), k and v (B, G, S, D), whose shapes :func:`archbench.kernels.causal_attention` has checked, and
return (B, H, T, D) in q's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from operator import index
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.attention_sdpa import scaled_dot_product
from archbench.kernels.dropout import fast_dropout

SMALLEST_BLOCK = 64
"""Least positions of a window's blocks."""


def reference_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float, dropout: float) -> Tensor:
    """The definition, in matrix products; holds all (B, H, T, S) weights."""
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    q = q.reshape(B * G, H // G * T, D)  # the H/G heads of a group, concatenated, share its keys
    k, v = k.reshape(B * G, S, D), v.reshape(B * G, S, D)
    hidden = torch.where(visible(T, S, window, q.device), 0.0, -math.inf).to(q.dtype)  # (T, S)
    scores = torch.baddbmm(hidden.repeat(H // G, 1), q, k.transpose(1, 2), alpha=scale)  # (B G, H/G T, S)
    weights = fast_dropout(scores.softmax(dim=-1), dropout, training=True)
    return torch.bmm(weights, v).view(B, H, T, D)


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float, dropout: float, kernel: str = "sdpa"
) -> Tensor:
    """PyTorch's fused kernels: one of :mod:`archbench.kernels.attention_sdpa`, or ``sdpa`` for torch's choice."""
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    if window is not None and T + window - 1 < S:  # positions that no query sees
        S = T + window - 1
        k, v = k[:, :, -S:], v[:, :, -S:]
    if window is not None and window >= S:
        window = None
    if T == 1 and window is None:
        grouped = q.reshape(B, G, H // G, D)  # a group's queries, all at the last position: no mask
        return scaled_dot_product(kernel, grouped, k, v, dropout_p=dropout, scale=scale).reshape(B, H, T, D)
    if window is not None and max(window, SMALLEST_BLOCK) < T:
        return _attention_in_blocks(q, k, v, window=window, scale=scale, dropout=dropout, kernel=kernel)
    if T == S and window is None:  # SDPA aligns its own mask at the first position, not at the last
        causal, mask = True, None
    else:
        causal, mask = False, visible(T, S, window, q.device)
    return scaled_dot_product(
        kernel, q, k, v,
        attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=index(H) != index(G),
    )  # fmt: skip


def _attention_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float, dropout: float, kernel: str
) -> Tensor:
    """A window over many positions, in time linear in T; with a mask SDPA would compute all T × S scores.

    Queries are in blocks as long as the window; each sees the keys of its own block and the previous one (Beltagy et
    al. 2020, Longformer, arXiv:2004.05150, section 3.1). One call has all blocks but the first, which has fewer keys.
    """
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    N = max(window, SMALLEST_BLOCK)  # positions per block
    before = S - T  # positions before the first query
    grouped = index(H) != index(G)
    first = scaled_dot_product(
        kernel, q[:, :, :N], k[:, :, : before + N], v[:, :, : before + N],
        attn_mask=visible(N, before + N, window, q.device), dropout_p=dropout, scale=scale, enable_gqa=grouped,
    )  # fmt: skip
    blocks = (T - 1) // N  # after the first; the last one is padded
    pad = (0, 0, 0, (blocks + 1) * N - T)

    def cut(x: Tensor, start: int, size: int) -> Tensor:
        """(B, ·, start + blocks × N …, D) -> (B × blocks, ·, size, D): every block, and the positions before it."""
        parts = F.pad(x, pad)[:, :, start:].unfold(2, size, N)[:, :, :blocks]  # (B, ·, blocks, D, size)
        return parts.permute(0, 2, 1, 4, 3).flatten(0, 1)

    others = scaled_dot_product(
        kernel, cut(q, N, N), cut(k, before, 2 * N), cut(v, before, 2 * N),
        attn_mask=visible(N, 2 * N, window, q.device), dropout_p=dropout, scale=scale, enable_gqa=grouped,
    )  # fmt: skip
    others = others.view(B, blocks, H, N, D).transpose(1, 2).reshape(B, H, blocks * N, D)
    return torch.cat([first, others], dim=2)[:, :, :T]


def flex_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float) -> Tensor:
    """FlexAttention (Dong et al. 2024, arXiv:2412.05496), compiled at its first call; on a CPU only forward.

    torch.compile builds a kernel for the first lengths T and S, and one for all lengths when they change.
    """
    (H, T, D), (G, S) = q.shape[1:], k.shape[1:3]
    if not torch.is_grad_enabled():  # on CPUs FlexAttention refuses inputs that require gradients
        q, k, v = q.detach(), k.detach(), v.detach()
    if torch.compiler.is_compiling():
        return _flex(q, k, v, _block_mask(T, S, S - T, window, q.device), scale, index(H) != index(G))
    mask = _cached_block_mask(T, S, window, q.device)
    out: Tensor = _compiled_flex(H, G, D, T == 1, window is None)(q, k, v, mask, scale, index(H) != index(G))
    return out


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, grouped: bool) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    out: Tensor = flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)
    return out


@cache
def _compiled_flex(*kind: int) -> Callable[..., Any]:
    """A compiled copy of :func:`_flex` for each kind of call.

    torch.compile counts recompilations by code object and gives up after eight, which the layers of one model could
    reach. With ``fullgraph`` that is an error, instead of silently running the uncompiled definition.
    """
    name = "_".join(["flex", *map(str, kind)])
    code = _flex.__code__.replace(co_name=name)
    return torch.compile(FunctionType(code, _flex.__globals__, name), fullgraph=True)


@lru_cache(maxsize=128)
def _cached_block_mask(T: int, S: int, window: int | None, device: torch.device) -> Any:
    # As tensors, because torch.compile would build a kernel for each value of an integer.
    limit = None if window is None else torch.full((), window, device=device)
    return _block_mask(T, S, torch.full((), S - T, device=device), limit, device)


def _block_mask(T: int, S: int, offset: int | Tensor, limit: int | Tensor | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = query + offset
        return key <= position if limit is None else (key <= position) & (position - key < limit)

    return create_block_mask(seen, None, None, T, S, device=device)


def visible(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    """(T, S) bool: which of S positions each of the last T sees."""
    seen = torch.ones(T, S, dtype=torch.bool, device=device).tril_(S - T)
    return seen if window is None else seen.triu_(S - T - window + 1)
