"""Token shift: part of each channel comes from the previous position (Peng et al. 2023, RWKV, arXiv:2305.13048)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def shift_mixer(x: Tensor, last: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A function from shares (C,) to x (B, T, C) with that share of each channel from the previous position.

    ``last`` (B, C) precedes the first position and is overwritten with x's last one; None for zeros.
    """
    first = torch.zeros_like(x[:, :1]) if last is None else last.unsqueeze(1).to(x.dtype)
    before = first if x.shape[1] == 1 else torch.cat([first, x[:, :-1]], dim=1)  # (B, T, C)
    difference = before - x
    if last is not None:
        last.copy_(x[:, -1])
    return lambda share: torch.addcmul(x, difference, share)
