"""Queries, keys and values out of one product, whose gradient is written once.

Autograd would stack their three gradients in one order, and copy that into the order of the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def split_heads(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """packed (B, T, 3, H, D) -> queries, keys and values (B, H, T, D) each, without a copy."""
    if packed.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        parts: tuple[Tensor, Tensor, Tensor] = _SplitHeads.apply(packed)  # type: ignore[no-untyped-call]
        return parts
    return reference_split_heads(packed)


def reference_split_heads(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The definition."""
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    return q, k, v


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference_split_heads(packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.stack([gradient.transpose(1, 2) for gradient in gradients], 2)
