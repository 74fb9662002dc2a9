"""Dropout (Srivastava et al. 2014) with a mask that is cheap on CPUs.

On CPUs ``F.dropout`` draws one Bernoulli variable per element, one after another. Here each 64-bit draw gives four
16-bit integers that decide: 2.2 (float32) to 2.8 (bfloat16) times as fast on GPT-1's attention weights, forward and
backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 2**16
"""On CPUs the probability is rounded to the nearest multiple of 1 / LEVELS (0.1 becomes 6,554 / 65,536)."""


def fast_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability ``p``, and divide the others by 1 - ``p``.

    Args:
        x: any shape, a floating dtype.
        p: 0 <= p < 1. On CPUs it is rounded to a multiple of 1/65,536, and kept elements are scaled by the rounded
            probability, so that the mean stays exact.
        training: False returns ``x`` itself.

    On other devices, and under torch.compile, this is ``F.dropout``: another mask of the same distribution. Randomness
    comes from torch's default generator.
    """
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped_levels = min(round(p * LEVELS), LEVELS - 1)
    return _Dropout.apply(x, dropped_levels)  # type: ignore[no-untyped-call, no-any-return]


class _Dropout(torch.autograd.Function):
    """Keeps one byte per element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped_levels: int) -> Tensor:
        keep = random_int16(x.numel()).view(x.shape) >= dropped_levels - LEVELS // 2
        ctx.save_for_backward(keep)
        ctx.scale = LEVELS / (LEVELS - dropped_levels)
        return _kept(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _kept(gradient, keep, ctx.scale), None


def _kept(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    # Takes half as long as torch.where(keep, x, 0), which is not vectorised.
    return (x * keep.view(torch.uint8).to(x.dtype)).mul_(scale)


def random_int16(count: int, generator: torch.Generator | None = None) -> Tensor:
    """(count,) int16, uniform over all 65,536 values, from ``generator`` or torch's default one."""
    draws = torch.empty((count + 3) // 4, dtype=torch.int64)
    return draws.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
