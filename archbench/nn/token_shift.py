"""Token shift: part of each channel comes from the previous position (Peng et al. 2023, RWKV, arXiv:2305.13048)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def shift_mixer(x: Tensor, last: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A function from shares (C,) to x (B, T, C) with that share of each channel from the previous position.

    ``last`` (B, C) precedes the first position and is overwritten with x's last one; None for zeros.
    """
    if last is None:
        first = torch.zeros_like(x[:, :1])
    else:
        first = last.unsqueeze(1).to(x.dtype, copy=True)
        last.copy_(x[:, -1])
    difference = torch.cat([first, x[:, :-1]], dim=1) - x
    return lambda share: torch.addcmul(x, difference, share)
