"""Linear layers: whole, and through fewer channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from archbench.kernels import linear
from archbench.kernels.companions import keeping_recipe
from archbench.nn.layer import Layer


class Linear(nn.Linear):
    """``nn.Linear`` computed by :func:`archbench.kernels.linear`: x (..., K) -> (..., N)."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        with keeping_recipe(x):
            return linear(x, self.weight, self.bias)


class LowRank(Layer):
    """x (..., C) -> up(activation(down(x))) + bias, R wide in the middle.

    The loramlp of RWKV-7 (arXiv:2503.14456, section 4.1). Its initial output is the bias: ``down`` is zero, ``up``
    orthogonal of gain 0.1, as published.

    Attributes:
        down: C -> R.
        up: R -> C.
        bias: (C,), or None.
    """

    def __init__(
        self, channels: int, rank: int, activation: Callable[[Tensor], Tensor] | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.down = Linear(channels, rank, bias=False)
        self.up = Linear(rank, channels, bias=False)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.activation = activation
        nn.init.zeros_(self.down.weight)
        nn.init.orthogonal_(self.up.weight, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        y = self.up(h if self.activation is None else self.activation(h))
        return y if self.bias is None else y + self.bias  # in float32 under autocast
