"""What a training has spent and recorded, which lags behind on devices that are expensive to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from archbench.training.budgets import Budget, Spent
from archbench.training.history import StepRecord, TrainingHistory
from archbench.training.progress import Progress

if TYPE_CHECKING:
    from archbench.training.state import TrainState

CUDA_READ_EVERY = 16
"""Updates between two readings of losses and times on a GPU: reading makes the CPU wait for the GPU."""

SKIPPED_UPDATES_ALLOWED = 32
"""float16 loss scaling skips updates with infinite gradients to find a scale; more in a row count as divergence."""


class Clock(Protocol):
    """Measures time; ``archbench.measure.clock`` has one for each kind of device."""

    def mark(self) -> Any:
        """A mark at this point of the device's work."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks."""
        ...


Observer = Callable[[int, int, Mapping[str, float]], object]
"""Called outside the timed steps with the step, the tokens trained on so far, and values by name."""


@dataclass
class Unread:
    """An update whose loss and time have not been read from the device yet."""

    step: int
    start: Any
    end: Any
    loss: Tensor
    grad_norm: Tensor | None
    lr: float
    tokens: int
    pauses: list[tuple[Any, Any]]


class Ledger:
    """The spent budget and the history, which lags behind on devices that are expensive to read."""

    def __init__(
        self, state: TrainState, budget: Budget, clock: Clock, progress: Progress, observe: Observer | None
    ) -> None:
        self.history = TrainingHistory()
        self.finished = False
        self._state = state
        self._budget = budget
        self._clock = clock
        self._progress = progress
        self._observe = observe
        self._read_every = 1 if state.device.type == "cpu" else CUDA_READ_EVERY
        self._unread: list[Unread] = []
        self._seconds = 0.0
        self._tokens = 0
        self._skipped = 0

    def continue_from(self, history: TrainingHistory) -> None:
        self.history = history
        self._seconds = sum(record.seconds for record in history.steps)
        self._tokens = history.tokens

    def open(self) -> None:
        self._progress.start(progress=self._spent_share(), tokens=self._state.tokens)
        if self.history.resumed_from is not None:
            self._progress.note(f"continuing after step {self.history.resumed_from:,}")
        self.finished = self._spent_share() >= 1.0
        if not self.finished:
            self.history.first_steps.append(self._state.step)
            self.history.note_world_size(self._state.step, self._state.ranks.size)

    def close(self) -> None:
        self._progress.close()

    @property
    def diverged(self) -> bool:
        return self.history.diverged_at is not None

    @property
    def validated(self) -> bool:
        """Whether the last validation was after the last update."""
        return bool(self.history.validations) and self.history.validations[-1][0] == self._state.step

    def read_diverged(self) -> bool:
        """Whether training has diverged by now, all updates read."""
        if self._unread:
            self._read()
        return self.diverged

    def progress_amid(self, tokens: int) -> float:
        """The spent share of the budget in the middle of the next update; at its start warm-up would be 0."""
        state = self._state
        seconds = self._estimated_seconds() + 0.5 * self._mean_seconds()
        return self._budget.progress(Spent(state.step + 0.5, state.tokens + 0.5 * tokens, seconds))

    def add(self, update: Unread, *, read: bool) -> None:
        """Count an update; read the unread ones if ``read``, after enough updates, or after the last."""
        self._unread.append(update)
        if read or len(self._unread) >= self._read_every or self._spent_share() >= 1.0:
            self._read()
            self.finished = self._spent_share() >= 1.0

    def add_validation(self, loss: float) -> None:
        state = self._state
        self.history.validations.append((state.step, state.tokens, loss))
        self._progress.validated(step=state.step, loss=loss)
        if self._observe is not None:
            self._observe(state.step, state.tokens, {"validation_loss": loss})

    def _read(self) -> None:
        """Read losses, which waits for the device, then times."""
        losses, seconds = self._of_all_ranks()
        norms = [None if update.grad_norm is None else float(update.grad_norm) for update in self._unread]
        for update, loss, taken, norm in zip(self._unread, losses, seconds, norms, strict=True):
            self._seconds += taken
            record = StepRecord(update.step, taken, loss, update.lr, norm, update.tokens)
            self.history.steps.append(record)
            self._tokens += record.tokens
            if self._observe is not None:
                self._observe(record.step, self._tokens, self._values(record))
            if self._is_divergence(loss, norm):
                self.history.diverged_at = update.step
                self._progress.note(f"diverged at step {update.step:,}: loss {loss}, gradient norm {norm}")
                break
        self._unread.clear()
        last = self.history.steps[-1]
        self._progress.update(
            progress=self._spent_share(), step=last.step + 1, tokens=self._state.tokens, loss=last.loss
        )

    def _of_all_ranks(self) -> tuple[list[float], list[float]]:
        """For each unread update its loss, the mean over the tokens of all ranks, and the seconds of the slowest."""
        ranks, clock = self._state.ranks, self._clock
        part = self._state.weight / ranks.size
        losses = [part * loss for loss in torch.stack([update.loss for update in self._unread]).tolist()]
        seconds = [
            clock.seconds(update.start, update.end) - sum(clock.seconds(begin, end) for begin, end in update.pauses)
            for update in self._unread
        ]
        every = ranks.gather([*losses, *seconds])  # (ranks, 2 updates)
        return every[:, : len(losses)].sum(0).tolist(), every[:, len(losses) :].amax(0).tolist()

    def _values(self, record: StepRecord) -> dict[str, float]:
        values = {"loss": record.loss, "learning_rate": record.lr}
        if record.grad_norm is not None:
            values["grad_norm"] = record.grad_norm
        if record.step != self.history.first_steps[-1]:
            values |= {"step_seconds": record.seconds, "tokens_per_second": record.tokens / record.seconds}
        return values

    def _is_divergence(self, loss: float, grad_norm: float | None) -> bool:
        if not math.isfinite(loss):
            return True
        if grad_norm is None or math.isfinite(grad_norm):
            self._skipped = 0
            return False
        self._skipped += 1
        return self._state.scaler is None or self._skipped > SKIPPED_UPDATES_ALLOWED

    def _spent_share(self) -> float:
        return self._budget.progress(Spent(self._state.step, self._state.tokens, self._estimated_seconds()))

    def _estimated_seconds(self) -> float:
        return self._seconds + len(self._unread) * self._mean_seconds()

    def _mean_seconds(self) -> float:
        return self._seconds / len(self.history.steps) if self.history.steps else 0.0
