"""Tables of positions: the angles of rotary ones, and rows of learned ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Cosines and sines of position × frequency; frequency i of D/2 is theta^(-2i/D) (Su et al. 2021, section 3.4).

    Computed in float64 and stored in float32, outside the state dict. Casting a model to bfloat16 casts the table and
    never the angles, which would be off by whole turns at long contexts.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_width: int, context_length: int, theta: float) -> None:
        super().__init__()
        frequencies = theta ** (torch.arange(0, head_width, 2, dtype=torch.float64) / -head_width)  # (D/2,)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float64), frequencies)  # (T, D/2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, start: int | Tensor, end: int | Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (end - start, D/2) of positions start to end - 1, or (1, D/2) of a position start (1,)."""
        if isinstance(start, Tensor):
            return self.cos.index_select(0, start), self.sin.index_select(0, start)
        return self.cos[start:end], self.sin[start:end]


def rows_at(table: Tensor, start: int | Tensor, T: int) -> Tensor:
    """Rows (T, C) of a table of positions (positions, C), from ``start`` on, or that of the position start (1,)."""
    return table.index_select(0, start) if isinstance(start, Tensor) else table[start : start + T]
