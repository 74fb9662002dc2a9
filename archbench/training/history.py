"""What happened in training, update by update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """One optimizer update.

    Attributes:
        step: its number, from 0.
        seconds: of the step alone: forward, backward, update.
        loss: mean over its tokens before the update, nats/token.
        lr: learning rate.
        grad_norm: global L2 norm of the gradients before clipping; None where a plugin updates by itself and has none.
        tokens: trained on in this update.
    """

    step: int
    seconds: float
    loss: float
    lr: float
    grad_norm: float | None
    tokens: int


@dataclass
class TrainingHistory:
    """All of a run's updates and validations, those before a resume included.

    Attributes:
        steps: one record an update.
        validations: (updates done, tokens seen, validation loss in nats/token).
        diverged_at: the update whose loss or gradient norm was NaN or infinite, where training ended; None if none was.
        resumed_from: updates that the checkpoint held which this process continued from; None if it started afresh.
        first_steps: the first update of every process that worked on the run: with warm-up and compilation in it.
    """

    steps: list[StepRecord] = field(default_factory=list)
    validations: list[tuple[int, int, float]] = field(default_factory=list)
    diverged_at: int | None = None
    resumed_from: int | None = None
    first_steps: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of training steps, in all."""
        return math.fsum(record.seconds for record in self.steps)

    @property
    def tokens(self) -> int:
        """Tokens trained on, in all."""
        return sum(record.tokens for record in self.steps)

    def to_tensors(self) -> dict[str, Tensor]:
        """The history as tensors: floats keep their last bit."""
        norms = [math.nan if record.grad_norm is None else record.grad_norm for record in self.steps]
        return {
            "first_steps": torch.tensor(self.first_steps, dtype=torch.int64),
            "step": torch.tensor([record.step for record in self.steps], dtype=torch.int64),
            "seconds": torch.tensor([record.seconds for record in self.steps], dtype=torch.float64),
            "loss": torch.tensor([record.loss for record in self.steps], dtype=torch.float64),
            "lr": torch.tensor([record.lr for record in self.steps], dtype=torch.float64),
            "grad_norm": torch.tensor(norms, dtype=torch.float64),
            "tokens": torch.tensor([record.tokens for record in self.steps], dtype=torch.int64),
            "validation_step": torch.tensor([step for step, _, _ in self.validations], dtype=torch.int64),
            "validation_tokens": torch.tensor([tokens for _, tokens, _ in self.validations], dtype=torch.int64),
            "validation_loss": torch.tensor([loss for _, _, loss in self.validations], dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, columns: Mapping[str, Tensor]) -> TrainingHistory:
        """Undo :meth:`to_tensors`."""
        names = ("step", "seconds", "loss", "lr", "grad_norm", "tokens")
        rows = zip(*(columns[name].tolist() for name in names), strict=True)
        steps = [
            StepRecord(n, seconds, loss, lr, None if math.isnan(norm) else norm, t)
            for n, seconds, loss, lr, norm, t in rows
        ]
        validation_names = ("validation_step", "validation_tokens", "validation_loss")
        validations = list(zip(*(columns[name].tolist() for name in validation_names), strict=True))
        return cls(steps, validations, first_steps=columns["first_steps"].tolist())
