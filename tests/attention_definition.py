"""The definition of causal attention, one position at a time in float64, to compare with."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


def naive_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None) -> Tensor:
    """q (B, H, T, D), k and v (B, G, S, D) -> (B, H, T, D) float64."""
    q, k, v = q.double(), k.double(), v.double()
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    scale = D**-0.5 if scale is None else scale
    rows = []
    for b, h, t in product(range(B), range(H), range(T)):
        last = S - T + t
        first = 0 if window is None else max(0, last - window + 1)
        keys, values = k[b, h // (H // G), first : last + 1], v[b, h // (H // G), first : last + 1]
        rows.append(torch.softmax(keys @ q[b, h, t] * scale, dim=0) @ values)
    return torch.stack(rows).view(B, H, T, D)
