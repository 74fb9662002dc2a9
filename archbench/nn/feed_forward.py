"""Feed-forward layers, plain and gated."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.companions import note_recipe
from archbench.nn.layer import Layer
from archbench.nn.linear import Linear

_REPEATABLE = (F.gelu, F.silu)
"""Known to be the same at every call, and whose gradient needs only their input."""


class FeedForward(Layer):
    """x (..., C) -> down(activation(up(x))), F wide (Vaswani et al. 2017, section 3.3).

    For the backward pass GELU and SiLU are computed again instead of being kept.
    """

    def __init__(self, channels: int, width: int, activation: Callable[[Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.up = Linear(channels, width, bias=bias)
        self.down = Linear(width, channels, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)  # (..., F)
        h = self.activation(up)
        if getattr(self.activation, "func", self.activation) in _REPEATABLE:
            note_recipe(h, self.activation, up)
        return self.down(h)


class GatedFeedForward(Layer):
    """x (..., C) -> down(activation(gate(x)) · up(x)), F wide (Shazeer 2020, arXiv:2002.05202).

    Attributes:
        gate_up: C -> 2F, in one product: rows of the gate, then of ``up``.
        down: F -> C.
        activation: silu for SwiGLU, gelu for GeGLU.
    """

    def __init__(
        self, channels: int, width: int, activation: Callable[[Tensor], Tensor], *, bias: bool = False
    ) -> None:
        super().__init__()
        self.gate_up = Linear(channels, 2 * width, bias=bias)
        self.down = Linear(width, channels, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (..., F) each
        return self.down(self.activation(gate) * up)
