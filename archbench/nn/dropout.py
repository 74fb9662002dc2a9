"""Dropout as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from archbench.kernels import fast_dropout


class Dropout(nn.Module):
    """``nn.Dropout`` with :func:`archbench.kernels.fast_dropout` behind it (Srivastava et al. 2014)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        return fast_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
