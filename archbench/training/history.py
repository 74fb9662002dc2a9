"""The record of training, update by update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_STEP_COLUMNS = {
    "step": torch.int64,
    "seconds": torch.float64,
    "loss": torch.float64,
    "lr": torch.float64,
    "grad_norm": torch.float64,
    "tokens": torch.int64,
}
_VALIDATION_COLUMNS = {
    "validation_step": torch.int64,
    "validation_tokens": torch.int64,
    "validation_loss": torch.float64,
}


@dataclass(frozen=True)
class StepRecord:
    """One optimizer update.

    Attributes:
        step: its number, from 0.
        seconds: of forward, backward and update only.
        loss: mean over its tokens before the update, nats/token.
        lr: learning rate.
        grad_norm: global L2 norm of the gradients before clipping; None if a plugin updates by itself.
        tokens: trained on.
    """

    step: int
    seconds: float
    loss: float
    lr: float
    grad_norm: float | None
    tokens: int


@dataclass
class TrainingHistory:
    """All of a run's updates and validations, including those before a resume.

    Attributes:
        steps: one record per update.
        validations: (updates done, tokens seen, validation loss in nats/token).
        diverged_at: the update whose NaN or infinite loss or gradient norm ended training; None if none did.
        resumed_from: updates done in the checkpoint that this process resumed; None without one.
        first_steps: the first update of each process of the run: it includes warm-up and compilation.
        world_sizes: (first update, processes that trained together from it on), for each change.
    """

    steps: list[StepRecord] = field(default_factory=list)
    validations: list[tuple[int, int, float]] = field(default_factory=list)
    diverged_at: int | None = None
    resumed_from: int | None = None
    first_steps: list[int] = field(default_factory=list)
    world_sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Total seconds of training steps."""
        return math.fsum(record.seconds for record in self.steps)

    @property
    def tokens(self) -> int:
        """Total tokens trained on."""
        return sum(record.tokens for record in self.steps)

    def note_world_size(self, step: int, size: int) -> None:
        """From update ``step`` on, so many processes train together."""
        if not self.world_sizes or self.world_sizes[-1][1] != size:
            self.world_sizes.append((step, size))

    def world_size(self, step: int) -> int:
        """How many processes made update ``step``."""
        return next(size for first, size in reversed(self.world_sizes) if first <= step)

    def to_tensors(self) -> dict[str, Tensor]:
        """The history as tensors, floats bit for bit."""
        rows = [
            (r.step, r.seconds, r.loss, r.lr, math.nan if r.grad_norm is None else r.grad_norm, r.tokens)
            for r in self.steps
        ]
        columns = {
            "first_steps": torch.tensor(self.first_steps, dtype=torch.int64),
            "world_sizes": torch.tensor(self.world_sizes, dtype=torch.int64).view(-1, 2),
        }
        for dtypes, table in ((_STEP_COLUMNS, rows), (_VALIDATION_COLUMNS, self.validations)):
            for number, (name, dtype) in enumerate(dtypes.items()):
                columns[name] = torch.tensor([row[number] for row in table], dtype=dtype)
        return columns

    @classmethod
    def from_tensors(cls, columns: Mapping[str, Tensor]) -> TrainingHistory:
        """Undo :meth:`to_tensors`."""
        rows = zip(*(columns[name].tolist() for name in _STEP_COLUMNS), strict=True)
        steps = [
            StepRecord(n, seconds, loss, lr, None if math.isnan(norm) else norm, t)
            for n, seconds, loss, lr, norm, t in rows
        ]
        validations = list(zip(*(columns[name].tolist() for name in _VALIDATION_COLUMNS), strict=True))
        sizes = columns.get("world_sizes", torch.tensor([[0, 1]])).tolist()  # earlier archbenches trained on one device
        return cls(steps, validations, None, None, columns["first_steps"].tolist(), [(one, n) for one, n in sizes])
