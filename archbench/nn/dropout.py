"""Dropout as a module."""

from __future__ import annotations

from torch import Tensor

from archbench.kernels import fast_dropout
from archbench.nn.layer import Layer


class Dropout(Layer):
    """``nn.Dropout`` computed by :func:`archbench.kernels.fast_dropout` (Srivastava et al. 2014)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return fast_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
