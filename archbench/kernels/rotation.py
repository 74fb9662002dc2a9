"""Rotary positions (Su et al. 2021, arXiv:2104.09864), half-split: channel i rotates with channel i + D/2, as in LLaMA
checkpoints in transformers' layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of channels (i, i + R/2) of x by its position's angle; channels from R on stay as they are.

    Args:
        x: (B, T, H, D), D at least R; any strides.
        cos, sin: (T, R/2), of the angles, in any floating dtype; they are cast to x's.

    Returns:
        (B, T, H, D), in x's dtype.
    """
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)  # (T, 1, R/2)
    if x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call, no-any-return]
    return reference_rotate(x, cos, sin)


def reference_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition; cos and sin (T, 1, R/2)."""
    first, second, *others = torch.split(x, _parts(x, cos), dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, *others], dim=-1)


class _Rotation(torch.autograd.Function):
    """Two passes over memory instead of autograd's dozen: the gradient of a rotation is the inverse rotation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, inverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(gradient, *ctx.saved_tensors, inverse=True), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool) -> Tensor:
    sign = -1.0 if inverse else 1.0
    rotated = torch.empty(x.shape, dtype=x.dtype)
    first, second, *others = torch.split(x, _parts(x, cos), dim=-1)
    to_first, to_second, *to_others = torch.split(rotated, _parts(x, cos), dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin, value=sign)
    for other, to_other in zip(others, to_others, strict=True):
        to_other.copy_(other)
    return rotated


def _parts(x: Tensor, cos: Tensor) -> list[int]:
    half, D = cos.shape[-1], x.shape[-1]
    return [half, half] if 2 * half == D else [half, half, D - 2 * half]
