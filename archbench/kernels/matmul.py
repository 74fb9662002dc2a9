"""x Wᵀ + b by PyTorch, or by oneDNN on AMD's CPUs.

PyTorch computes float32 products on x86 with MKL, which uses AMD's cores poorly. oneDNN, part of PyTorch, is 1.9 times
as fast for a few rows and a large matrix (decoding), and 1.05 to 1.5 times in training (EPYC of the Zen 4 generation,
two cores, torch 2.13; 256 to 2,048 rows, weights of 192 × 576 and larger). It builds a kernel for each number of rows,
which should therefore be the same in every step. Half-precision products use oneDNN anyway.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.companions import column_sums, narrowed
from archbench.kernels.precision import autocast_dtype, without_autocast
from archbench.kernels.working_weights import working

FEW_ROWS, LARGE_FOR_FEW_ROWS, LARGE = 16, 2**18, 2**16
"""A weight of at least so many elements, with few rows and with many, is worth oneDNN's 10 µs per call. Its rounding
error is about twice MKL's."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x (..., K), weight (N, K), bias (N,) -> (..., N), by the fastest library of this machine.

    The choice depends only on the machine, dtype and sizes, so that the same run gives the same numbers.
    """
    x, weight = narrowed(x), working(weight)
    if bias is not None and x.device.type == "cuda" and _learns_eagerly(bias):
        return _biased_linear(x, weight, bias)
    bias = None if bias is None else working(bias)
    large = LARGE_FOR_FEW_ROWS if x.numel() <= FEW_ROWS * x.shape[-1] else LARGE
    if weight.numel() >= large and _onednn_applies(x, weight):
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


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


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` for float32 on x86 CPUs through oneDNN; differentiable once."""
    trained = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained and torch.is_grad_enabled():
        return _OneDNNLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call, no-any-return]
    return _product(x, weight, bias)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (M, N)
        for_x = _product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        for_weight = rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        for_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return for_x, for_weight, for_bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _onednn_applies(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")  # it would make the product bfloat16
        and not torch.compiler.is_compiling()
        and _amd_cpu()
    )


@cache
def _amd_cpu() -> bool:
    try:
        processor = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not Linux: the vendor is unknown, and F.linear works everywhere
        return False
    return "AuthenticAMD" in processor and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
