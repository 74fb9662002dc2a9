"""The recurrence of Griffin."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archbench.kernels.precision import exact_dtype
from archbench.kernels.recurrence.gated_scan import gated_scan


class BlockLinear(nn.Module):
    """x (B, T, R) -> (B, T, R), each of H blocks of channels times its own matrix."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        width = channels // blocks
        self.weight = nn.Parameter(torch.empty(blocks, width, width))  # input × output
        self.bias = nn.Parameter(torch.zeros(blocks, width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        H, K, _ = self.weight.shape
        blocks = x.reshape(-1, H, K).transpose(0, 1)  # (H, B T, K)
        products: Tensor = torch.baddbmm(self.bias.unsqueeze(1), blocks, self.weight)
        return products.transpose(0, 1).reshape(x.shape)


class RGLRU(nn.Module):
    """The real-gated linear recurrent unit, in float32: x (B, T, R) -> h (B, T, R).

    De et al. 2024, Griffin (arXiv:2402.19427), section 2.4, equations 1 to 4:
    h_t = a_t · h_{t-1} + √(1 - a_t²) · i_t · x_t and a_t = exp(-8 r_t softplus(Λ)), with gates i_t and r_t of x_t.

    Attributes:
        decay: (R,), Λ.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.input_gate = BlockLinear(channels, blocks)
        self.recurrence_gate = BlockLinear(channels, blocks)
        # As published: exp(-softplus(Λ)) between 0.9 and 0.999, its square uniformly.
        squares = torch.empty(channels).uniform_(0.9**2, 0.999**2)
        self.decay = nn.Parameter(squares.rsqrt().sub(1).log())

    def forward(self, x: Tensor, state: Tensor | None, *, first: bool) -> Tensor:
        """``state`` (B, R) before x is overwritten with the one after; ``first``: nothing precedes x."""
        exact = exact_dtype(x.dtype)
        i = self.input_gate(x).to(exact).sigmoid()
        r = self.recurrence_gate(x).to(exact).sigmoid()
        log_a = -8.0 * F.softplus(self.decay.to(exact)) * r
        if first:
            log_a[:, 0] = -math.inf  # no state to keep
        scale: Tensor = _InputScale.apply(log_a)  # type: ignore[no-untyped-call]
        h, last = gated_scan(log_a.exp(), scale * i * x, state)
        if state is not None:
            state.copy_(last.detach())
        return h


class _InputScale(torch.autograd.Function):
    """√(1 - a²) of log a. Its derivative is unbounded as a nears 1; as published, the root's is limited to 1000."""

    @staticmethod
    def forward(ctx: Any, log_a: Tensor) -> Tensor:
        root = (2 * log_a).expm1_().neg_().sqrt_()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        root: Tensor = ctx.saved_tensors[0]
        return (root.square() - 1) / root.clamp(min=5e-4) * gradient  # -a² / root
