"""Token shift: part of each channel taken from the position before (Peng et al. 2023, RWKV, arXiv:2305.13048)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def shift_mixer(x: Tensor, last: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A function from shares (C,) to x (B, T, C) with that share of each channel taken from the position before.

    Before the first position is ``last`` (B, C), which is overwritten with x's last position; zeros if there is none.
    """
    if last is None:
        first = torch.zeros_like(x[:, :1])
    else:
        first = last.unsqueeze(1).to(x.dtype, copy=True)
        last.copy_(x[:, -1])
    difference = torch.cat([first, x[:, :-1]], dim=1) - x
    return lambda share: torch.addcmul(x, difference, share)
