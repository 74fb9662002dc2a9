"""The short causal convolution before the recurrence of recurrent layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from archbench.errors import ConfigError
from archbench.kernels import causal_convolution
from archbench.nn.cache import product_dtype


class CausalConv1d(nn.Module):
    """Mixes each channel of x (B, T, C) with its K - 1 previous positions, in whole passes and from a cache.

    The caller applies the activation.

    Attributes:
        weight: (C, 1, K), laid out and initialised as in ``nn.Conv1d`` with C groups.
        bias: (C,), or None.
    """

    def __init__(self, channels: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError("d_conv", f"a convolution of {width} taps sees nothing", "Choose at least 1")
        self.channels, self.width = channels, width
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within ± 1/√K."""
        bound = 1 / math.sqrt(self.width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def new_state(self, batch_size: int) -> Tensor:
        """The state before the first position: zeros (B, K - 1, C), in the dtype of matrix products."""
        shape = (batch_size, self.width - 1, self.channels)
        return torch.zeros(shape, dtype=product_dtype(self.weight), device=self.weight.device)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, state: Tensor | None = None) -> Tensor: ...

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C), in x's dtype.

        Args:
            x: (B, T, C), T at least 1.
            state: (B, K - 1, C), the positions before x, overwritten with the last ones; None for zeros.
        """
        if state is None:
            window = nn.functional.pad(x, (0, 0, self.width - 1, 0))  # (B, K - 1 + T, C)
        else:
            window = torch.cat([state.to(x.dtype), x], dim=1)
            state.copy_(window[:, x.shape[1] :].detach())
        return causal_convolution(window, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.channels}, width={self.width}, bias={self.bias is not None}"
