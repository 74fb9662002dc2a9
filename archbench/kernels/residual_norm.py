"""LayerNorm of a residual sum, as in post-LN transformers: norm(x + dropout(y)).

    archbench::residual_norm_forward   x, y, weight, bias, seed  ->  out, narrow, total, mean, deviation
    archbench::residual_norm_backward  gradients of out and narrow, …  ->  gradients of x, y, weight, bias; column sums

The readable form is torch's own operations, and what runs on CPUs and under torch.compile, which fuses them itself. On
GPUs one Triton kernel does all of it, and another the backward pass (:mod:`archbench.kernels.fused.residual_rows`): two
launches and a sum instead of 14. Under autocast the kernel also writes its output in half precision, for the product
that reads it. Dropout's mask is not stored but made again from its seed. On a CPU the operators are the same algebra in
PyTorch, for tests of the code around the kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.companions import note_column_sums, note_narrow, note_recipe
from archbench.kernels.dropout import fast_dropout
from archbench.kernels.dropout_bits import dropped_levels, kept_scale, kernel_seed, reference_keep, seed_argument
from archbench.kernels.operators import no_second_derivative
from archbench.kernels.precision import autocast_dtype, without_autocast
from archbench.kernels.triton_guard import row_kernels_run

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

WIDEST = 2**14
"""Channels up to which a row fits a program's registers."""


def residual_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """LayerNorm(x + dropout(y)) over the last dimension.

    Args:
        x: the residual (..., C).
        y: what is added to it (..., C).
        weight, bias: (C,) of the norm.
        eps: added to the variance.
        dropout: probability of dropping an element of ``y``.
        training: False drops none.

    Returns:
        (..., C). Under autocast float32, as LayerNorm is there.
    """
    if not _fusible(x, y, weight):
        total = x + fast_dropout(y, dropout, training)
        out = _norm(total, weight, bias, eps)
        note_recipe(out, partial(_norm, eps=eps), total, weight, bias)
        return out
    dropped = dropped_levels(dropout) if training else 0
    return fused_residual_norm(x, y, weight, bias, eps, dropped, kernel_seed() if dropped else torch.tensor(0))


def _norm(total: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(total, weight.shape, weight, bias, eps)


def fused_residual_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dropped: int, seed: Tensor
) -> Tensor:
    """:func:`residual_norm` by the operators; ``dropped`` of 65,536 elements of y are dropped, by ``seed``."""
    narrow = autocast_dtype(x)
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, y, weight, bias))
    with without_autocast(x):
        out, low, *_ = _forward(
            x.contiguous(), y.contiguous(), weight, bias, seed, eps, dropped, narrow or x.dtype, trained
        )
    result: Tensor = out
    if narrow is not None and narrow != x.dtype:
        note_narrow(result, low)
    return result


@torch.library.custom_op("archbench::residual_norm_forward", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    eps: float,
    dropped: int,
    narrow: torch.dtype,
    trained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Closed form. ``narrow`` is empty if its dtype is x's; the last three are, unless something is trained."""
    outputs: Outputs = _forward_shapes(x, y, weight, bias, seed, eps, dropped, narrow, trained)
    rows = y.to(x.dtype).flatten(0, -2)
    if dropped:
        kept = _kept_rows(seed, rows, dropped)
        rows = rows * kept * kept_scale(dropped)
    total = x.flatten(0, -2) + rows
    mean = total.mean(-1)
    deviation = (total.var(-1, correction=0) + eps).rsqrt()
    normed = (total - mean[:, None]) * deviation[:, None] * weight
    out = (normed if bias is None else normed + bias).view(x.shape)
    for target, value in zip(outputs, (out, out, total, mean, deviation), strict=True):
        if target.numel():
            target.copy_(value.view(target.shape))
    return outputs


@torch.library.custom_op("archbench::residual_norm_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_out: Tensor | None,
    grad_narrow: Tensor | None,
    total: Tensor,
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor,
    seed: Tensor,
    dropped: int,
    y_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and y, (..., C), and sums (3, C): the gradients of weight and bias, and y's summed over rows."""
    gradient = sum(g.to(total.dtype) for g in (grad_out, grad_narrow) if g is not None)
    assert isinstance(gradient, Tensor)
    normed = (total - mean[..., None]) * deviation[..., None]
    scaled = gradient * weight
    back = scaled - scaled.mean(-1, keepdim=True) - normed * (scaled * normed).mean(-1, keepdim=True)
    for_x = for_y = back * deviation[..., None]
    if dropped:
        rows = for_x.flatten(0, -2)
        kept = _kept_rows(seed, rows, dropped)
        for_y = (rows * kept * kept_scale(dropped)).view(for_x.shape)
    sums = torch.stack([part.flatten(0, -2).sum(0) for part in (gradient * normed, gradient, for_y)])
    return for_x.clone(), torch.empty_like(for_y, dtype=y_dtype).copy_(for_y), sums


@_forward.register_kernel("cuda")
def _forward_on_gpu(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, *others: Any) -> Outputs:
    from archbench.kernels.fused.row_launches import residual_norm_launch

    eps, dropped, _, _ = others
    outputs: Outputs = _forward_shapes(x, y, weight, bias, seed, *others)
    out, *rest = outputs
    given = [tensor if tensor.numel() else None for tensor in rest]
    with torch.cuda.device(x.device):
        rows = x.flatten(0, -2), y.flatten(0, -2)
        number = seed_argument(seed)
        residual_norm_launch(*rows, weight, bias, out, *given, eps=eps, seed=number, dropped=dropped).run()
    return outputs


@_backward.register_kernel("cuda")
def _backward_on_gpu(
    grad_out: Tensor | None, grad_narrow: Tensor | None, total: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    from archbench.kernels.fused.row_launches import gradient_programs, residual_norm_gradient_launch

    mean, deviation, weight, seed, dropped, y_dtype = others
    rows = total.flatten(0, -2)
    grad_x, grad_y = torch.empty_like(total), torch.empty_like(total, dtype=y_dtype)
    sums = total.new_empty(gradient_programs(rows.shape[0]), 3, rows.shape[1])
    wide, narrow = (None if gradient is None else gradient.contiguous() for gradient in (grad_out, grad_narrow))
    with torch.cuda.device(total.device):
        residual_norm_gradient_launch(
            wide, narrow, rows, mean, deviation, weight, grad_x, grad_y, sums, seed=seed_argument(seed), dropped=dropped
        ).run()
    return grad_x, grad_y, sums.sum(0)


@_forward.register_fake
def _forward_shapes(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _, _, narrow, trained = others
    kept = x.shape if trained else (0,)
    statistics = x.shape[:-1] if trained else (0,)
    return (
        torch.empty_like(x),
        x.new_empty(x.shape if narrow != x.dtype else (0,), dtype=narrow),
        x.new_empty(kept),
        x.new_empty(statistics),
        x.new_empty(statistics),
    )


@_backward.register_fake
def _backward_shapes(
    grad_out: Tensor | None, grad_narrow: Tensor | None, total: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y_dtype = others[-1]
    return torch.empty_like(total), torch.empty_like(total, dtype=y_dtype), total.new_empty(3, total.shape[-1])


def _kept_rows(seed: Tensor, rows: Tensor, dropped: int) -> Tensor:
    N, C = rows.shape
    return reference_keep(int(seed), 1, N, C, dropped, rows.device)[0]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, y, weight, bias, seed, _, ctx.dropped, _, _ = inputs
    _, _, total, mean, deviation = output
    ctx.save_for_backward(total, mean, deviation, weight, seed)
    ctx.y_dtype, ctx.shifted = y.dtype, bias is not None
    ctx.mark_non_differentiable(total, mean, deviation)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_narrow: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None and grad_narrow is None:
        return (None,) * 9
    for_x, for_y, sums = torch.ops.archbench.residual_norm_backward(
        grad_out, grad_narrow, *ctx.saved_tensors, ctx.dropped, ctx.y_dtype
    )
    if type(for_y) is Tensor:  # and no compiler traces it
        note_column_sums(for_y, sums[2])
    return for_x, for_y, sums[0], sums[1] if ctx.shifted else None, *[None] * 5


_forward.register_autograd(_gradients, setup_context=_save_for_backward)
_backward.register_autograd(no_second_derivative("fused residual and LayerNorm", "Use F.layer_norm(x + y, …)"))


def _fusible(x: Tensor, y: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and row_kernels_run(x.device)
        and x.dtype == weight.dtype == torch.float32
        and y.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.shape == y.shape
        and x.shape[-1] <= WIDEST
    )
