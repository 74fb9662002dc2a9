"""Accuracy on a task: one function scores every model, from its logits."""

from __future__ import annotations

import torch
from torch import nn

from archbench.data.tasks import IGNORED, Examples

TOKENS_AT_ONCE = 1 << 14


def accuracy(model: nn.Module, examples: Examples, device: torch.device | None = None) -> float:
    """The share of questions whose answer is the most likely token, in [0, 1].

    Args:
        model: tokens (B, T) int64 -> logits (B, T, V), in evaluation mode.
        examples: (B, T); targets that are :data:`archbench.data.tasks.IGNORED` are not scored.
        device: of the model; the CPU by default.

    An answer from logits that are not finite is wrong.
    """
    inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
    right = asked = 0
    rows = max(1, TOKENS_AT_ONCE // inputs.shape[1])
    with torch.no_grad():
        for start in range(0, len(inputs), rows):
            answers = targets[start : start + rows].to(device)
            counted = answers != IGNORED  # (B, T)
            logits = model(inputs[start : start + rows].to(device))[counted]  # (N, V)
            known = logits.isfinite().all(dim=-1)
            right += int((known & (logits.argmax(dim=-1) == answers[counted])).sum())
            asked += int(counted.sum())
    return right / asked
