"""Cross-entropy of a chunk of logits, and softmax minus one-hot in their place, without a second tensor of their size.

Written for CPUs; on GPUs one Triton kernel does the same (:mod:`archbench.kernels.fused.loss_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SOFTMAX_BYTES = 2**20
"""Float32 logits per CPU core and softmax: they fit in its second-level cache."""

ACCELERATOR_BYTES = 2**29
"""The same on other devices."""


def softmax_errors(logits: Tensor, targets: Tensor, pieces: Tensor, trained: bool) -> Tensor:
    """Loss (R,) of each row; if anything is trained, logits (R, V) are overwritten by their gradient.

    ``pieces`` (r, V) is overwritten, r rows at a time; the loss has its dtype.
    """
    losses = pieces.new_empty(targets.shape)
    for rows in slices(logits.shape[0], pieces.shape[0]):
        piece, ids = logits[rows], targets[rows].unsqueeze(1)  # (r, V), (r, 1)
        p = torch.softmax(piece, dim=-1, dtype=pieces.dtype, out=pieces[: piece.shape[0]])
        # log p of the target by the largest p, which is at least 1 / V: the target's own may underflow.
        log_p = (piece.gather(1, ids).to(p.dtype) - piece.amax(1, keepdim=True)).add_(p.amax(1, keepdim=True).log_())
        losses[rows] = -log_p.squeeze(1)
        if trained:
            logits[rows] = p.scatter_(1, ids, log_p.expm1())  # softmax minus one-hot
    return losses


def piece_rows(V: int, device: torch.device) -> int:
    """r, rows of V logits that a softmax reads at a time."""
    share = SOFTMAX_BYTES * torch.get_num_threads() if device.type == "cpu" else ACCELERATOR_BYTES
    return max(1, share // (4 * V))


def slices(length: int, step: int) -> Iterator[slice]:
    """``length`` in pieces of ``step``."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
