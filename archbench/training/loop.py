"""The training loop, the same for every architecture; its timed region is visible here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from archbench.errors import HookFailedError, HookResultError
from archbench.interruption import held_back
from archbench.training import resume
from archbench.training.budgets import Budget
from archbench.training.compilation import compile_error
from archbench.training.distribution import PeerError, Ranks
from archbench.training.generators import forked_generators
from archbench.training.history import TrainingHistory
from archbench.training.ledger import Clock, Ledger, Observer, Unread
from archbench.training.progress import Progress
from archbench.training.schedules import learning_rate
from archbench.training.state import Sampler, TrainState
from archbench.training.steps import next_token_step
from archbench.training.updates import Updates

if TYPE_CHECKING:
    from archbench.config import TrainingConfig
    from archbench.data.batches import Batch
    from archbench.training.step_audit import StepAudit


def train(
    state: TrainState,
    sampler: Sampler,
    config: TrainingConfig,
    *,
    clock: Clock,
    step: Callable[[TrainState, Batch], Tensor] = next_token_step,
    updates: Updates | None = None,
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
        sampler: batches of ``batch_size`` × ``accumulation`` sequences, of which each rank reads its share.
        config: budget, schedule, and how often to validate and to write checkpoints.
        clock: times each update.
        step: a plugin's ``train_step``.
        updates: how they are taken; ``step`` is then theirs. None: operation by operation.
        flops_per_token: model FLOPs of training on one token, for a budget in FLOPs.
        validate: the model's loss on held-out text, nats/token. Called in evaluation mode, without gradients, on the
            uncompiled module; it does not affect random number generators, and its time is not counted. All ranks call
            it, and their forward passes are as many.
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
        PeerError: one came to another rank. All stop after the same update.
    """
    ranks, updates = state.ranks, updates or Updates(state, step)
    budget = Budget.from_config(config, flops_per_token)
    ledger = Ledger(state, budget, clock, progress or Progress("silent"), observe)
    run = ranks.first(lambda: resume.fingerprint(state, config, sampler.batch(0)))
    if checkpoints is not None and (restored := resume.restore(checkpoints, state, run)) is not None:
        ledger.continue_from(restored)
    elif not ranks.leads:
        ranks.seed(0)
    state.model.train()
    ledger.open()
    saved, whole = state.step, True

    def enough_after_validation() -> bool:
        """Validate if that is due here; a resumed run owes the validation in which it was interrupted."""
        due = state.step > 0 and (_is_due(config.validate_every, state.step) or ledger.finished)
        if validate is None or not due or ledger.validated:
            return False
        ledger.add_validation(_validation_loss(state, validate, look))
        return enough is not None and enough()

    try:
        with ranks.training(), _interrupted_together(ranks) as look:
            done = enough_after_validation()
            while not (done or ledger.finished):
                with held_back():
                    whole = False
                    number = state.step
                    drawn, tokens = state.next_batch(sampler, number)
                    watched = audit is not None and audit.due(number)
                    lr = updates.begin(learning_rate(config, ledger.progress_amid(tokens)), watched=watched)
                    if audit is not None and updates.replayed:  # what Python did in a watched update, a replay does too
                        watched = audit.due(number - 1)
                    if audit is not None and watched:
                        audit.start(drawn.to(state.device))

                    start = clock.mark()
                    loss = updates.take(updates.place(drawn))
                    end = clock.mark()

                    if state.step != number + 1:
                        made = f"it made {state.step - number} updates"
                        raise HookResultError("train_step", made, "Call state.update() exactly once")
                    pauses = audit.end(loss, replayed=updates.replayed) if audit is not None and watched else []
                    state.tokens += tokens
                    checkpoint_due = _is_due(config.checkpoint_every, state.step)
                    ledger.add(
                        Unread(number, start, end, loss.detach(), state.grad_norm, lr, tokens, pauses),
                        read=checkpoint_due or _is_due(config.validate_every, state.step),
                    )
                    whole = True
                look()
                if ledger.diverged:
                    break
                done = enough_after_validation()
                if checkpoints is not None and (checkpoint_due or ledger.finished) and not done:
                    with held_back():
                        resume.save(checkpoints, state, ledger.history, run)
                        saved = state.step
    except (KeyboardInterrupt, PeerError):
        with held_back():
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


@contextmanager
def _interrupted_together(ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Within this context of several ranks a signal waits until all know of it, which they do where all call what is
    yielded: otherwise some would wait for others in the next update."""
    if ranks.size == 1:
        yield lambda: None
        return
    with held_back() as waiting:

        def look() -> None:
            if ranks.any(bool(waiting)):
                raise PeerError("it was interrupted")

        try:
            yield look
        except PeerError:
            if not waiting:
                raise


def _validation_loss(state: TrainState, validate: Callable[[nn.Module], float], look: Callable[[], None]) -> float:
    """The loss of rank 0; all ranks validate together, in as many forward passes each, and ``look`` before each."""
    hook = state.module.register_forward_pre_hook(lambda *_: look()) if state.ranks.size > 1 else None
    # The generators are restored: how often a run validates must not change its training.
    with forked_generators(state.device), torch.no_grad():
        state.module.eval()
        try:
            return float(state.ranks.gather([validate(state.module)])[0])
        finally:
            state.module.train()
            if hook is not None:
                hook.remove()
