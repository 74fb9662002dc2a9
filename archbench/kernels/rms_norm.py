"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) at about the cost of LayerNorm, on CPUs too.

torch has a fused kernel on GPUs; on CPUs ``F.rms_norm`` is a chain of pointwise operations that autograd differentiates
one by one, 4 to 6 times as slow as LayerNorm. Here the backward pass is LayerNorm's fused kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.precision import exact


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · gain over the last dimension, computed in float32 for any dtype.

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
        return F.rms_norm(exact(x), gain.shape, exact(gain), eps).to(x.dtype)
    if x.device.type == "cuda" and x.dtype == gain.dtype:
        return F.rms_norm(x, gain.shape, gain, eps)  # torch's kernel sums in float32
    return reference_rms_norm(x, gain, eps)


def reference_rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The definition; see :func:`rms_norm`."""
    wide = exact(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * exact(gain)).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = exact(x)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (..., 1)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, scale)
        normed: Tensor = (wide * scale).mul_(gain)
        return normed.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, scale = ctx.saved_tensors
        wide, weight = x.to(scale.dtype), gain.to(scale.dtype)
        gradient = gradient.to(scale.dtype).contiguous()
        C = x.shape[-1]
        # LayerNorm of mean zero is RMSNorm, except for the gradient through the mean, which is added back.
        for_x, for_gain, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, wide.contiguous(), [C], torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        through_mean = (gradient @ weight).unsqueeze(-1).div_(C)  # (..., 1)
        return for_x.addcmul_(scale, through_mean).to(x.dtype), for_gain.to(gain.dtype), None
