"""One update of several ranks that moves nothing, before the training: can this ``train_step`` be shared?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from archbench.errors import ArchbenchError, HookFailedError, PluginError, one_line
from archbench.training.distribution import from_a_peer
from archbench.training.state import Sampler, TrainState
from archbench.training.step_audit import fingerprint, untouched

if TYPE_CHECKING:
    from archbench.data.batches import Batch

ADVICE = "Train it with --nproc 1, or by state.split, state.model, state.backward and state.update in its train_step"


@dataclass
class _Rehearsal(TrainState):
    """A state whose update looks at the gradients and clears them."""

    losses: int = 0
    updates: int = 0
    without: str | None = None
    gradients: Tensor | None = None

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        self.losses += 1
        super().backward(loss, weight)

    def update(self) -> None:
        self.updates += 1
        named = [(name, one) for name, one in self.module.named_parameters() if one.requires_grad]
        self.without = next((name for name, one in named if one.grad is None), None)
        self.gradients = fingerprint(one.grad for _, one in named if one.grad is not None)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1


def rehearse(state: TrainState, step: Callable[[TrainState, Batch], Tensor], sampler: Sampler, name: str) -> None:
    """Make one update with ``step``, all but the movement. Random numbers and buffers are afterwards what they were.

    Args:
        sampler: of the training; each rank takes its share of the first batch.
        name: of the architecture.

    Raises:
        PluginError: its ``train_step`` cannot be shared by ranks: it fails on a part of a batch, leaves out a
            parameter, exchanges no gradients, or changes buffers by the tokens of one rank. All ranks raise it.
    """
    ranks, culprit = state.ranks, f"architecture {name}, --parallel {state.ranks.parallel}"

    def refuse(cause: str, next_step: str = ADVICE, error: BaseException | None = None) -> NoReturn:
        raise PluginError(culprit, cause, next_step) from error

    trial = _Rehearsal(**{one.name: getattr(state, one.name) for one in fields(TrainState)})
    trial.scaler = None
    own = trial.next_batch(sampler, 0)[0].to(state.device)
    trial.optimizer = torch.optim.SGD(state._parameters, lr=0.0)
    weights, buffers = fingerprint(state._parameters), fingerprint(state.module.buffers())
    with untouched(state.module, state.device), ranks.training():
        try:
            step(trial, own)
        except (ArchbenchError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            if from_a_peer(error) or (isinstance(error, ArchbenchError) and not isinstance(error, HookFailedError)):
                raise
            refuse(f"its train_step fails on a part of a batch ({one_line(error.__cause__ or error)})", error=error)
        changed = not torch.equal(buffers, fingerprint(state.module.buffers()))
    if trial.losses == 0 or trial.updates != 1:
        calls = "state.backward, which weights a rank's tokens" if trial.losses == 0 else "state.update exactly once"
        refuse(f"its train_step does not call {calls}")
    if trial.without is not None:
        refuse(
            f"parameter {trial.without} gets no gradient from a batch, and the other ranks wait for it",
            "Leave it out, or freeze it (requires_grad_(False))",
        )
    if changed:
        refuse("its train_step changes buffers, by the tokens of one rank alone", "Train it with --nproc 1")
    if not torch.equal(weights, fingerprint(state._parameters)):
        refuse("its train_step moves the parameters without state.update")
    if not ranks.sharded:
        assert trial.gradients is not None
        every = ranks.gather(trial.gradients.to(torch.float64).tolist())
        if not torch.equal(every, every[:1].expand_as(every)):
            refuse("its ranks have different gradients after a batch: its train_step does not call state.model")
