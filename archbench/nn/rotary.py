"""The angles of rotary positions, as a table."""

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

    def forward(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (end - start, D/2) of positions start to end - 1."""
        return self.cos[start:end], self.sin[start:end]
