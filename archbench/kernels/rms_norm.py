"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) that costs about what LayerNorm does, on CPUs too.

torch has one fused kernel on GPUs; on CPUs ``F.rms_norm`` is a chain of pointwise operations whose gradient autograd
takes one by one, 4 to 6 times as slow as LayerNorm. Here the backward pass is LayerNorm's fused kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · gain over the last dimension, in float32 whatever the dtype.

    Args:
        x: (..., C).
        gain: (C,).
        eps: added to the mean square.

    Returns:
        (..., C), in x's dtype.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        if torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad):
            return _RMSNorm.apply(x, gain, eps)  # type: ignore[no-untyped-call, no-any-return]
        exact, weight = _exact(x), _exact(gain)
        return F.rms_norm(exact, gain.shape, weight, eps).to(x.dtype)
    if x.device.type == "cuda" and x.dtype == gain.dtype:
        return F.rms_norm(x, gain.shape, gain, eps)  # torch's kernel sums in float32
    return reference_rms_norm(x, gain, eps)


def reference_rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The definition; see :func:`rms_norm`."""
    exact = _exact(x)
    normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return (normed * _exact(gain)).to(x.dtype)


def _exact(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        exact = _exact(x)
        norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)  # (..., 1)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, scale)
        normed: Tensor = (exact * scale).mul_(gain)
        return normed.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, scale = ctx.saved_tensors
        exact, weight = x.to(scale.dtype), gain.to(scale.dtype)
        gradient = gradient.to(scale.dtype).contiguous()
        C = x.shape[-1]
        # LayerNorm of mean zero is RMSNorm, but for the gradient that it takes through the mean: that is put back.
        for_x, for_gain, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, exact.contiguous(), [C], torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        through_mean = (gradient @ weight).unsqueeze(-1).div_(C)  # (..., 1)
        return for_x.addcmul_(scale, through_mean).to(x.dtype), for_gain.to(gain.dtype), None
