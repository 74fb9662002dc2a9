"""How the loop takes an update: what it needs before, and what it knows after."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from archbench.data.batches import Batch
    from archbench.training.state import TrainState

    Step = Callable[[TrainState, Batch], Tensor]


class Updates:
    """Updates as their code asks for them, operation by operation; :mod:`.captured_update` has others.

    Args:
        state: of the training.
        step: a plugin's ``train_step``.
        reason: why they are not what was asked for.

    Attributes:
        kind: ``eager``, ``static`` or ``graph``: what ran.
        reason: why it is not what was asked for, as a clause; None if it is.
        replayed: whether the last one was a replay, in which no line of Python ran.
        asked: numbers of the updates that were asked operation by operation, in a training of graphs.
        capture_seconds: of the host; None if nothing was captured.
    """

    kind = "eager"

    def __init__(self, state: TrainState, step: Step, reason: str | None = None) -> None:
        self.state, self.step, self.reason = state, step, reason
        self.replayed = False
        self.asked: list[int] = []
        self.capture_seconds: float | None = None

    def begin(self, rate: float, *, watched: bool) -> float:
        """Before the clock starts: set the learning rate. Returns the one that is used.

        Args:
            watched: whether Python has to see this update.
        """
        self.state.set_learning_rate(rate)
        return rate

    def place(self, drawn: Batch) -> Batch:
        """The batch on the device."""
        return drawn.to(self.state.device)

    def take(self, batch: Batch) -> Tensor:
        """The update; the batch's mean loss, shape ()."""
        return self.step(self.state, batch)
