"""Attention of GPT and of the LLaMA family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from archbench.errors import ConfigError
from archbench.kernels import causal_attention, rotate, single_query_attention, split_heads
from archbench.nn.cache import KVCache
from archbench.nn.linear import Linear


class SelfAttention(nn.Module):
    """Causal multi-head attention without positions (Vaswani et al. 2017, section 3.2): x (B, T, C) -> (B, T, C).

    Attributes:
        qkv: C -> 3C, in one product: rows of all queries, then keys, then values.
        out: C -> C.
        dropout: probability of dropping an attention weight, in training.
    """

    def __init__(self, channels: int, heads: int, *, layer: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.layer, self.dropout = heads, layer, dropout
        self.qkv = Linear(channels, 3 * channels, bias=bias)
        self.out = Linear(channels, channels, bias=bias)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, cache: KVCache | None = None) -> Tensor: ...

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = split_heads(self.qkv(x).view(B, T, 3, self.heads, C // self.heads))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D), S positions read so far
        y = attend(q, k, v, cache, dropout=self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class RotaryAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions: x (B, T, C) -> (B, T, C).

    Attributes:
        qkv: C -> (H + 2G) D, in one product, without bias: rows of all heads of queries, then keys, then values.
        out: H D -> C, with an optional bias.
        window: W, positions that each position sees, itself included; None for all.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        *,
        layer: int,
        window: int | None = None,
        out_bias: bool = False,
    ) -> None:
        super().__init__()
        if heads % kv_heads:
            cause = f"{heads} query heads do not split evenly among {kv_heads}"
            raise ConfigError("n_kv_head", cause, "Choose a divisor of n_head")
        if head_width % 2:
            raise ConfigError("d_head", f"{head_width} channels cannot be rotated in pairs", "Choose an even width")
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.layer, self.window = layer, window
        self.qkv = Linear(channels, (heads + 2 * kv_heads) * head_width, bias=False)
        self.out = Linear(heads * head_width, channels, bias=out_bias)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KVCache | None = None) -> Tensor: ...

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KVCache | None = None) -> Tensor:
        """x (B, T, C), angles from :class:`Rotary` for these T positions, for all D channels or the first R."""
        B, T, _ = x.shape
        H, G, D = self.heads, self.kv_heads, self.head_width
        qk, v = torch.split(self.qkv(x).view(B, T, H + 2 * G, D), [H + G, G], dim=2)
        q, k = torch.split(rotate(qk, *angles), [H, G], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D), twice (B, G, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, G, S, D)
        y = attend(q, k, v, cache, window=self.window)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, H * D))


def attend(
    q: Tensor, k: Tensor, v: Tensor, cache: KVCache | None, *, window: int | None = None, dropout: float = 0.0
) -> Tensor:
    """q (B, H, T, D), and the keys and values (B, G, S, D) that ``cache.append`` returned -> (B, H, T, D)."""
    if cache is not None and cache.bias is not None:
        return single_query_attention(q, k, v, cache.bias)  # a ring holds no position outside the window
    return causal_attention(q, k, v, window=window, dropout=dropout)
