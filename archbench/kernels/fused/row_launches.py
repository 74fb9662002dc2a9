"""Launches of the kernels that work row by row, or tile by tile: residual and LayerNorm, cross-entropy, float8."""

from __future__ import annotations

import math

from torch import Tensor

from archbench.kernels.dropout_bits import kept_scale
from archbench.kernels.fused.float8_tiles import TILE, quantise_kernel
from archbench.kernels.fused.loss_rows import LOSS_BLOCK, cross_entropy_kernel
from archbench.kernels.fused.residual_rows import residual_norm_gradient_kernel, residual_norm_kernel
from archbench.kernels.launch import Launch

PROGRAMS = 512
"""Most programs of the gradient of LayerNorm. The same on every GPU, so that sums have one order: two on each of an
H100's 132 multiprocessors for most of the time. Calculated, not measured."""


def residual_norm_launch(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, narrow: Tensor | None,
    total: Tensor | None, mean: Tensor | None, deviation: Tensor | None,
    *, eps: float, seed: int | Tensor, dropped: int,
) -> Launch:  # fmt: skip
    """LayerNorm(x + dropout(y)) of rows (N, C); ``total``, ``mean`` and ``deviation`` are None if none is trained."""
    N, C = x.shape
    arguments = {
        "x": x, "y": y, "weight": weight, "bias": weight if bias is None else bias, "out": out,
        "narrow": out if narrow is None else narrow, "total": out if total is None else total,
        "mean": out if mean is None else mean, "deviation": out if deviation is None else deviation,
        "N": N, "seed": seed, "dropped": dropped, "scale": kept_scale(dropped), "eps": eps,
        "C": C, "BLOCK": _block(C), "DROPOUT": dropped > 0, "NARROW": narrow is not None,
        "SHIFTED": bias is not None, "TRAINED": total is not None,
    }  # fmt: skip
    return Launch("residual_norm", residual_norm_kernel, (N,), arguments, _options(C))


def residual_norm_gradient_launch(
    grad_out: Tensor | None, grad_narrow: Tensor | None, total: Tensor, mean: Tensor, deviation: Tensor,
    weight: Tensor, grad_x: Tensor, grad_y: Tensor, sums: Tensor, *, seed: int | Tensor, dropped: int,
) -> Launch:  # fmt: skip
    """The gradients of rows (N, C); sums has one part for each program, as :func:`gradient_programs` says."""
    N, C = total.shape
    arguments = {
        "grad_out": total if grad_out is None else grad_out,
        "grad_narrow": total if grad_narrow is None else grad_narrow,
        "total": total, "mean": mean, "deviation": deviation, "weight": weight, "grad_x": grad_x, "grad_y": grad_y,
        "sums": sums, "N": N, "rows_each": -(-N // sums.shape[0]), "seed": seed, "dropped": dropped,
        "scale": kept_scale(dropped), "C": C, "BLOCK": _block(C), "DROPOUT": dropped > 0,
        "WIDE": grad_out is not None, "NARROW": grad_narrow is not None,
    }  # fmt: skip
    return Launch("residual_norm_gradient", residual_norm_gradient_kernel, (sums.shape[0],), arguments, _options(C))


def gradient_programs(N: int) -> int:
    """Programs among which N rows are divided: none has no row."""
    return -(-N // -(-N // PROGRAMS))


def cross_entropy_launch(logits: Tensor, targets: Tensor, losses: Tensor, *, ignored: int, trained: bool) -> Launch:
    """Losses (R,) of logits (R, V), which are overwritten by their gradient if something is trained."""
    R, V = logits.shape
    stride, unit = logits.stride(0), math.gcd(logits.stride(0), 16 // logits.element_size())
    arguments = {
        "logits": logits, "targets": targets, "losses": losses, "row_stride": stride // unit, "V": V,
        "ignored": ignored, "BLOCK": LOSS_BLOCK, "STRIDE_UNIT": unit, "TRAINED": trained,
    }  # fmt: skip
    return Launch("cross_entropy", cross_entropy_kernel, (R,), arguments, {"num_warps": 8, "enable_fp_fusion": True})


def quantise_launch(
    x: Tensor, largest: Tensor | None, scale: Tensor, values: Tensor, transposed: Tensor, *, least: float, top: float
) -> Launch:
    """x (M, K), whose rows are contiguous, divided by scale (), in float8: values (M', K') and transposed (K', M').

    Scale is written, from the largest () absolute value; it is read if that is None.
    """
    (M, K), (M16, K16) = x.shape, values.shape
    arguments = {
        "x": x, "largest": scale if largest is None else largest, "scale": scale, "values": values,
        "transposed": transposed, "M": M, "K": K, "stride": x.stride(0), "M16": M16, "K16": K16,
        "TILE": TILE, "FOUND": largest is None, "LEAST": least, "TOP": top,
    }  # fmt: skip
    return Launch("quantise", quantise_kernel, (-(-M16 // TILE), -(-K16 // TILE)), arguments, {"num_warps": 4})


def _block(C: int) -> int:
    return max(16, 1 << (C - 1).bit_length())


def _options(C: int) -> dict[str, object]:
    return {"num_warps": min(16, max(1, _block(C) // 256)), "enable_fp_fusion": True}
