"""RMSNorm as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.kernels import rms_norm
from archbench.nn.layer import Layer


class RMSNorm(Layer):
    """x (..., C) -> x / sqrt(mean(x²) + eps) · gain, in float32 (Zhang & Sennrich 2019).

    Attributes:
        weight: (C,), the gain minus ``gain_offset``.
        gain_offset: 1 if the gain is stored as its difference from one, as in Gemma.
    """

    def __init__(self, channels: int, eps: float = 1e-6, *, gain_offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.gain_offset = eps, gain_offset
        self.weight = nn.Parameter(torch.full((channels,), 1.0 - gain_offset))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight.float() + self.gain_offset if self.gain_offset else self.weight
        return rms_norm(x, gain, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}" + (", gain 1 + weight" if self.gain_offset else "")
