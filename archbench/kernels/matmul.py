"""x Wᵀ + b by the fastest library of this machine (:mod:`archbench.kernels.product_choice`), or by PyTorch.

oneDNN builds a kernel for each number of rows, which should therefore be the same in every step. Half-precision
products on CPUs use oneDNN anyway.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.companions import column_sums, narrowed
from archbench.kernels.float8_linear import float8_linear, in_float8
from archbench.kernels.packed_product import forget
from archbench.kernels.precision import autocast_dtype, without_autocast
from archbench.kernels.product_choice import choosable, forward, input_gradient, torch_alone, weight_gradient
from archbench.kernels.working_weights import working


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x (..., K), weight (N, K), bias (N,) -> (..., N), by the fastest library of this machine.

    The choice depends only on the machine, dtype and sizes, so that the same run gives the same numbers.
    """
    if in_float8(x, weight):
        return float8_linear(x, weight, bias)
    x, weight = narrowed(x), working(weight)
    if bias is not None and x.device.type == "cuda" and _learns_eagerly(bias):
        return _biased_linear(x, weight, bias)
    bias = None if bias is None else working(bias)
    if not choosable(x, weight):
        return F.linear(x, weight, bias)
    trained = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if not trained or not torch.is_grad_enabled():
        return forward(x, weight, bias)
    forget(weight)
    if torch_alone(x.numel() // x.shape[-1], *weight.shape):
        return F.linear(x, weight, bias)
    return ChosenLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call, no-any-return]


def _learns_eagerly(bias: Tensor) -> bool:
    return torch.is_grad_enabled() and bias.requires_grad and not torch.compiler.is_compiling()


def _biased_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear``; the bias's gradient is not rounded, and may be the column sums that a fused kernel has noted."""
    narrow = working(bias).detach()
    if (dtype := autocast_dtype(x)) is not None:
        x, weight, narrow = x.to(dtype), weight.to(dtype), narrow.to(dtype)
    return BiasedLinear.apply(x, weight, bias, narrow)  # type: ignore[no-untyped-call, no-any-return]


class BiasedLinear(torch.autograd.Function):
    """x Wᵀ + narrow; ``narrow`` (N,) is the bias in x's dtype, and its gradient goes to ``bias``, in bias's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, narrow: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = bias.dtype
        with without_autocast(x):
            return F.linear(x, weight, narrow)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (M, N)
        for_x = gradient @ weight if ctx.needs_input_grad[0] else None
        for_weight = rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, column_sums(gradient, ctx.bias_dtype), None


class ChosenLinear(torch.autograd.Function):
    """x Wᵀ + b for float32 on x86 CPUs, each of its three products by the faster library; differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (M, N)
        for_x = input_gradient(gradient, weight) if ctx.needs_input_grad[0] else None
        for_weight = weight_gradient(rows, x.flatten(0, -2), weight) if ctx.needs_input_grad[1] else None
        for_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return for_x, for_weight, for_bias
