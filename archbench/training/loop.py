"""The training loop, the same for every architecture; its timed region is visible here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from archbench.errors import HookFailedError, HookResultError
from archbench.interruption import held_back
from archbench.training import resume
from archbench.training.budgets import Budget, Spent
from archbench.training.compilation import compile_error
from archbench.training.history import StepRecord, TrainingHistory
from archbench.training.progress import Progress
from archbench.training.schedules import learning_rate
from archbench.training.state import TrainState
from archbench.training.steps import next_token_step

if TYPE_CHECKING:
    from archbench.config import TrainingConfig
    from archbench.data.batches import Batch
    from archbench.training.step_audit import StepAudit

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


class Sampler(Protocol):
    """Batches by number, as from ``archbench.data.batches.BatchSampler``."""

    def batch(self, step: int) -> Batch:
        """The batch of that update, which depends only on its number: resuming needs no state."""
        ...


Observer = Callable[[int, int, Mapping[str, float]], object]
"""Called outside the timed steps with the step, the tokens trained on so far, and values by name."""


@dataclass
class _Unread:
    """An update whose loss and time have not been read from the device yet."""

    step: int
    start: Any
    end: Any
    loss: Tensor
    grad_norm: Tensor | None
    lr: float
    tokens: int
    pauses: list[tuple[Any, Any]]


def train(
    state: TrainState,
    sampler: Sampler,
    config: TrainingConfig,
    *,
    clock: Clock,
    step: Callable[[TrainState, Batch], Tensor] = next_token_step,
    flops_per_token: float = math.nan,
    validate: Callable[[nn.Module], float] | None = None,
    enough: Callable[[], bool] | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
    observe: Observer | None = None,
    audit: StepAudit | None = None,
) -> TrainingHistory:
    """Train until the budget is spent or the run diverges. An interrupted one writes a checkpoint between two updates.

    Args:
        state: the model and its optimizer; continued in place.
        sampler: batches of ``batch_size`` × ``accumulation`` sequences.
        config: budget, schedule, and how often to validate and to write checkpoints.
        clock: times each update.
        step: a plugin's ``train_step``.
        flops_per_token: model FLOPs of training on one token, for a budget in FLOPs.
        validate: the model's loss on held-out text, nats/token. Called in evaluation mode, without gradients, on the
            uncompiled module; it does not affect random number generators, and its time is not counted.
        enough: called after each validation; True ends the training before its budget is spent.
        checkpoints: folder of checkpoints; training resumes from the newest. None to write none.
        progress: None for silence.
        observe: called for each update when its loss is read (``loss``, ``learning_rate``, ``grad_norm`` and, except
            for a process's first step, ``step_seconds`` and ``tokens_per_second``), and for each ``validation_loss``.
        audit: watches some of the steps; they take it no time, and no other course.

    Raises:
        ConfigError: the budget is in FLOPs, without ``flops_per_token``.
        HookResultError: ``step`` did not make exactly one update.
        CheckpointError: the newest checkpoint is damaged, or of another run.
        StorageError: a checkpoint cannot be written; the last complete one is intact.
        DeviceError: ``torch.compile`` failed.
        KeyboardInterrupt: a signal came (:mod:`archbench.interruption`).
    """
    budget = Budget.from_config(config, flops_per_token)
    ledger = _Ledger(state, budget, clock, progress or Progress("silent"), observe)
    run = resume.fingerprint(state, config, sampler.batch(0))
    if checkpoints is not None and (restored := resume.restore(checkpoints, state, run)) is not None:
        ledger.continue_from(restored)
    state.model.train()
    ledger.open()
    saved, whole = state.step, True

    def enough_after_validation() -> bool:
        """Validate if that is due here; a resumed run owes the validation in which it was interrupted."""
        due = state.step > 0 and (_is_due(config.validate_every, state.step) or ledger.finished)
        if validate is None or not due or ledger.validated:
            return False
        ledger.add_validation(_validation_loss(state, validate))
        return enough is not None and enough()

    try:
        done = enough_after_validation()
        while not (done or ledger.finished):
            with held_back():
                whole = False
                number = state.step
                batch = sampler.batch(number).to(state.device)
                tokens = batch.targets.numel()
                lr = learning_rate(config, ledger.progress_amid(tokens))
                state.set_learning_rate(lr)
                watched = audit is not None and audit.due(number)
                if audit is not None and watched:
                    audit.start(batch)

                start = clock.mark()
                loss = step(state, batch)
                end = clock.mark()

                if state.step != number + 1:
                    raise HookResultError(
                        "train_step", f"it made {state.step - number} updates", "Call state.update() exactly once"
                    )
                pauses = audit.end(loss) if audit is not None and watched else []
                state.tokens += tokens
                checkpoint_due = _is_due(config.checkpoint_every, state.step)
                ledger.add(
                    _Unread(number, start, end, loss.detach(), state.grad_norm, lr, tokens, pauses),
                    read=checkpoint_due or _is_due(config.validate_every, state.step),
                )
                whole = True
            if ledger.diverged:
                break
            done = enough_after_validation()
            if checkpoints is not None and (checkpoint_due or ledger.finished) and not done:
                with held_back():
                    resume.save(checkpoints, state, ledger.history, run)
                    saved = state.step
    except KeyboardInterrupt:
        if checkpoints is not None and whole and state.step > saved and not ledger.read_diverged():
            resume.save(checkpoints, state, ledger.history, run)
        raise
    except (RuntimeError, HookFailedError) as error:
        if (failure := compile_error(error)) is not None:
            raise failure from error
        raise
    finally:
        ledger.close()
    return ledger.history


def _is_due(every: int | None, updates: int) -> bool:
    return every is not None and updates % every == 0


def _validation_loss(state: TrainState, validate: Callable[[nn.Module], float]) -> float:
    devices = [state.device] if state.device.type == "cuda" else []
    # The generators are restored: how often a run validates must not change its training.
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        state.module.eval()
        try:
            return float(validate(state.module))
        finally:
            state.module.train()


class _Ledger:
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
        self._unread: list[_Unread] = []
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

    def add(self, update: _Unread, *, read: bool) -> None:
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
        losses = torch.stack([update.loss for update in self._unread]).tolist()
        norms = [None if update.grad_norm is None else float(update.grad_norm) for update in self._unread]
        for update, loss, norm in zip(self._unread, losses, norms, strict=True):
            seconds = self._clock.seconds(update.start, update.end)
            seconds -= sum(self._clock.seconds(begin, end) for begin, end in update.pauses)
            self._seconds += seconds
            record = StepRecord(update.step, seconds, loss, update.lr, norm, update.tokens)
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
