"""A causal depthwise convolution of a few taps, channels last, without transposing the tensor.

On CPUs ``F.conv1d`` with as many groups as channels is slower than a product and a sum per tap, whose autograd reads
and writes the whole tensor a dozen times more than necessary: here each tap is one pass, and two backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archbench.kernels.precision import exact


def causal_convolution(window: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_t = Σ_k weight_k · window_{t+k} + bias, each channel by itself, summed in float32 (float64 stays float64).

    Args:
        window: (B, K - 1 + T, C): the K - 1 positions before the first (zeros at the start of a text), then T more.
        weight: (C, 1, K), as in ``nn.Conv1d`` with C groups: the last tap is for the position itself.
        bias: (C,).

    Returns:
        (B, T, C), in window's dtype.
    """
    wide = exact(window)
    taps = weight[:, 0].t().to(wide.dtype)  # (K, C)
    shift = None if bias is None else bias.to(wide.dtype)
    if window.shape[1] == taps.shape[0]:  # T = 1, decoding: two operations instead of two per tap
        y = (wide * taps).sum(1, keepdim=True)
        return (y if shift is None else y + shift).to(window.dtype)
    if window.device.type == "cpu" and not torch.compiler.is_compiling():
        return _CausalConvolution.apply(wide, taps, shift).to(window.dtype)  # type: ignore[no-untyped-call, no-any-return]
    return reference_causal_convolution(wide, taps, shift).to(window.dtype)


def reference_causal_convolution(window: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """The definition; taps (K, C), see :func:`causal_convolution`."""
    K = taps.shape[0]
    T = window.shape[1] - K + 1
    y = window[:, K - 1 :] * taps[K - 1]  # (B, T, C)
    for k in range(K - 1):
        y = y + window[:, k : k + T] * taps[k]
    return y if bias is None else y + bias


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, window: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(window, taps)
        K = taps.shape[0]
        T = window.shape[1] - K + 1
        last = window[:, K - 1 :]
        y = last * taps[K - 1] if bias is None else torch.addcmul(bias, last, taps[K - 1])
        for k in range(K - 1):
            y.addcmul_(window[:, k : k + T], taps[k])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        window, taps = ctx.saved_tensors
        K, T = taps.shape[0], gradient.shape[1]
        for_window = for_taps = None
        if ctx.needs_input_grad[0]:
            for_window = torch.zeros_like(window)
            for k in range(K):
                for_window[:, k : k + T].addcmul_(gradient, taps[k])
        if ctx.needs_input_grad[1]:
            for_taps, product = torch.empty_like(taps), torch.empty_like(gradient)
            for k in range(K):
                torch.mul(gradient, window[:, k : k + T], out=product)
                for_taps[k] = product.sum((0, 1))
        return for_window, for_taps, gradient.sum((0, 1)) if ctx.needs_input_grad[2] else None
