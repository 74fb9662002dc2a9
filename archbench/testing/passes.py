"""Forward passes of one model that differ in nothing but their tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.testing.subject import logits_of, seed_generators
from archbench.testing.token_gradients import token_gradients


class Passes:
    """Forward passes under one seed, each from the same buffers.

    Attributes:
        mode: ``evaluation`` or ``training``.
    """

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        self.mode = "training" if training else "evaluation"
        self.model = model.train(training)
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def logits(self, tokens: Tensor, seed: int = 0) -> Tensor:
        """(B, T, V) float32, computed as a run does: in training mode gradients are recorded."""
        self._reset_buffers()
        return logits_of(self.model, tokens.clone(), seed, record=self.mode == "training")

    def gradients(self, tokens: Tensor, positions: Tensor) -> list[Tensor]:
        """See :func:`archbench.testing.token_gradients.token_gradients`."""
        self._reset_buffers()
        seed_generators(0, tokens.device)  # the same dropout
        return token_gradients(self.model, tokens.clone(), positions)

    def _reset_buffers(self) -> None:
        with torch.no_grad():
            for buffer, value in self._buffers:  # running statistics move in training mode
                buffer.copy_(value)
