"""The head's loss with its products in float8, chunk by chunk, as :mod:`archbench.kernels.linear_cross_entropy` has it.

Hidden states and head are scaled by their largest value, as in :mod:`archbench.kernels.float8_linear`. Softmax minus
one-hot lies between -1 and 1 whatever the logits are: its scale is a constant (as in modded-nanogpt, whose scales are
all constant), so no chunk of the logits is read to find one, and the loss does not depend on the chunks.

The readable reference is ``F.cross_entropy(float8_linear(hidden, weight, bias).float(), targets, reduction="sum")``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.float8_linear import E4M3, E5M2, UNIT, product, quantise, scale_of
from archbench.kernels.softmax_errors import piece_rows, softmax_errors
from archbench.kernels.triton_guard import row_kernels_run

ERROR_SCALE = 2.0**-15
"""Errors of 1 become 2^15, the largest power of two in e5m2; those below 2^-31 are lost."""


def float8_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignored: int,
    dtype: torch.dtype,
    chunks: Iterable[slice],
    gradients: tuple[Tensor, Tensor, Tensor],
    trained: list[bool],
) -> Tensor:
    """Losses (N,) float32, zero for ``ignored`` targets; the sum's gradients are written into ``gradients``.

    Args:
        hidden: (N, C).
        weight: (V, C), in any dtype: it is rounded once.
        bias: (V,), or None.
        targets: (N,) int64.
        dtype: of the logits.
        chunks: of the N rows.
        gradients: of hidden, weight and bias; those that are not trained are left alone.
    """
    (d_hidden, d_weight, d_bias), (for_hidden, for_weight, for_bias) = gradients, trained
    (N, C), V = hidden.shape, weight.shape[0]
    head, scale = quantise(weight, E4M3), scale_of(hidden, E4M3)
    error_scale = torch.full((), ERROR_SCALE, device=hidden.device)
    head_bias = None if bias is None else F.pad(bias.to(dtype), (0, -V % UNIT))
    losses = torch.empty(N, device=hidden.device)
    d_bias.zero_()
    for number, rows in enumerate(chunks):
        states, R = quantise(hidden[rows], E4M3, scale), rows.stop - rows.start
        filled = product(states.operand, head.operand, dtype, head_bias, inexact=True)[:R]
        logits = filled[:, :V]  # what is right of them is 0 and stays 0
        losses[rows] = _losses(logits, targets[rows], ignored, any(trained))
        if for_bias:
            d_bias += logits.sum(0, dtype=d_bias.dtype)
        errors = quantise(filled, E5M2, error_scale) if for_hidden or for_weight else None
        del logits, filled  # before the products' results are allocated
        if errors is not None and for_hidden:
            part = product(errors.operand, head.turned, d_hidden.dtype)
            d_hidden[rows] = part[:R, :C]
        if errors is not None and for_weight:
            part = product(errors.turned, states.turned, d_weight.dtype)[:V, :C]
            d_weight.copy_(part) if number == 0 else d_weight.add_(part)
    return losses


def _losses(logits: Tensor, targets: Tensor, ignored: int, trained: bool) -> Tensor:
    """Losses (R,) of logits (R, V), which become softmax minus one-hot, or zeros where the target is ``ignored``."""
    if row_kernels_run(logits.device):
        from archbench.kernels.fused.row_launches import cross_entropy_launch

        losses = torch.empty(targets.shape, device=logits.device)
        with torch.cuda.device(logits.device):
            cross_entropy_launch(logits, targets, losses, ignored=ignored, trained=trained).run()
        return losses
    (R, V), counted = logits.shape, targets != ignored
    pieces = torch.empty(min(R, piece_rows(V, logits.device)), V, device=logits.device)
    losses = softmax_errors(logits, targets.where(counted, 0), pieces, trained)
    if trained:
        logits.mul_(counted.to(logits.dtype).unsqueeze(1))
    return losses.where(counted, 0)
