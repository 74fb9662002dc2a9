"""A linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from archbench.kernels import linear


class Linear(nn.Linear):
    """``nn.Linear`` with :func:`archbench.kernels.linear` behind it: x (..., K) -> (..., N)."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
