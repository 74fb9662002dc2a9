"""Norms as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from archbench.kernels import residual_norm, rms_norm
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


class ResidualNorm(nn.LayerNorm):
    """x, y (..., C) -> LayerNorm(x + dropout(y)), as after each sublayer of a post-LN block (Vaswani et al. 2017).

    Attributes:
        weight, bias: (C,), of the norm.
        dropout: probability of dropping an element of y, in training.
    """

    def __init__(self, channels: int, eps: float = 1e-5, *, dropout: float = 0.0) -> None:
        super().__init__(channels, eps=eps)
        self.dropout = dropout

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return residual_norm(x, y, self.weight, self.bias, self.eps, dropout=self.dropout, training=self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"
