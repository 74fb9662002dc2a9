"""The audit of training: wrong steps are caught at a watched one, and a right training is the same with and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archbench.data.batches import Batch
from archbench.measure.clock import CPUClock
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.state import TrainState
from archbench.training.step_audit import Finding, StepAudit, fingerprint
from archbench.training.steps import next_token_loss, next_token_step
from training_setup import losses, new_state, recipe, sampler

STEPS, SEED = 8, 2
"""By this seed three of the steps are watched."""

Step = Callable[[TrainState, Batch], Tensor]


def audited(step: Step, state: TrainState | None = None, **values: Any) -> tuple[list[Finding], TrainingHistory]:
    """The findings of a short training, of which the audit watches three steps, the first among them."""
    config = recipe(steps=STEPS, weight_decay=0.1, grad_clip=1.0, **values)
    state = new_state(config) if state is None else state
    found: list[Finding] = []
    audit = StepAudit(state, SEED, CPUClock(), found.append)
    batches = sampler(config.batch_size * config.accumulation)
    return found, train(state, batches, config, clock=CPUClock(), step=step, audit=audit)


class Wrong:
    """A ``train_step`` with a fault; what it keeps between steps is here."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.average: Any = None
        self.earlier: list[Batch] = []

    def __call__(self, state: TrainState, batch: Batch) -> Tensor:
        return getattr(self, self.fault)(state, batch)  # type: ignore[no-any-return]

    def loss_is_a_moving_average(self, state: TrainState, batch: Batch) -> Tensor:
        loss = next_token_step(state, batch)
        self.average = loss if self.average is None else 0.9 * self.average + 0.1 * loss
        return self.average  # type: ignore[no-any-return]

    def weights_become_their_average_from_step_3_on(self, state: TrainState, batch: Batch) -> Tensor:
        loss = next_token_step(state, batch)
        with torch.no_grad():
            parameters = [parameter.detach() for parameter in state.module.parameters()]
            self.average = self.average or [parameter.clone() for parameter in parameters]
            for average, parameter in zip(self.average, parameters, strict=True):
                average.lerp_(parameter, 0.5)
                if state.step >= 3:
                    parameter.copy_(average)
        return loss

    def one_gain_is_moved_after_an_honest_update(self, state: TrainState, batch: Batch) -> Tensor:
        loss = next_token_step(state, batch)
        with torch.no_grad():
            next(p for p in state.module.parameters() if p.ndim == 1).mul_(1.01)
        return loss

    def weights_shrink_before_the_update(self, state: TrainState, batch: Batch) -> Tensor:
        with torch.no_grad():
            torch._foreach_mul_(list(state.module.parameters()), 0.999)
        return next_token_step(state, batch)

    def weight_decay_is_switched_off(self, state: TrainState, batch: Batch) -> Tensor:
        state.optimizer.param_groups[0]["weight_decay"] = 0.0
        return next_token_step(state, batch)

    def betas_are_changed_for_a_step_and_put_back(self, state: TrainState, batch: Batch) -> Tensor:
        group = state.optimizer.param_groups[0]
        betas, group["betas"] = group["betas"], (0.5, 0.5)
        loss = next_token_step(state, batch)
        group["betas"] = betas
        return loss

    def rate_is_tripled(self, state: TrainState, batch: Batch) -> Tensor:
        state.set_learning_rate(3 * state.optimizer.param_groups[0]["lr"])
        return next_token_step(state, batch)

    def clipping_is_switched_off(self, state: TrainState, batch: Batch) -> Tensor:
        state.grad_clip = None
        return next_token_step(state, batch)

    def optimizer_is_swapped_after_step_1(self, state: TrainState, batch: Batch) -> Tensor:
        if state.step == 2:
            state.optimizer = torch.optim.SGD(state.module.parameters(), lr=0.1)
        return next_token_step(state, batch)

    def optimizer_does_something_else(self, state: TrainState, batch: Batch) -> Tensor:
        optimizer = state.optimizer
        optimizer.step = lambda: torch.optim.SGD(state.module.parameters(), lr=0.1).step()  # type: ignore
        return next_token_step(state, batch)

    def batch_is_trained_on_twice(self, state: TrainState, batch: Batch) -> Tensor:
        loss = next_token_loss(state, batch)
        for _ in range(2):
            state.backward(next_token_loss(state, batch), 0.5)
        state.update()
        return loss.detach()

    def old_batches_are_replayed_from_step_3_on(self, state: TrainState, batch: Batch) -> Tensor:
        self.earlier.append(batch)
        loss = next_token_loss(state, batch)
        old = self.earlier[-2] if state.step >= 3 else batch
        state.backward(next_token_loss(state, old) if old is not batch else loss)
        state.update()
        return loss.detach()

    def token_0_is_left_out_of_the_loss(self, state: TrainState, batch: Batch) -> Tensor:
        logits = state.model(batch.inputs).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, batch.targets.flatten(), ignore_index=0)
        state.backward(loss)
        state.update()
        return loss.detach()


FAULTS = {
    "loss_is_a_moving_average": ("audit_loss", "returned a loss of"),
    "weights_become_their_average_from_step_3_on": ("audit_movement", "after the optimizer's step"),
    "one_gain_is_moved_after_an_honest_update": ("audit_movement", "after the optimizer's step"),
    "weights_shrink_before_the_update": ("audit_movement", "before the optimizer's step"),
    "weight_decay_is_switched_off": ("audit_movement", "weight_decay of parameter group 0 from 0.1 to 0.0"),
    "betas_are_changed_for_a_step_and_put_back": ("audit_movement", "betas of parameter group 0"),
    "rate_is_tripled": ("audit_movement", "learning rate"),
    "clipping_is_switched_off": ("audit_movement", "grad_clip from 1.0 to None"),
    "optimizer_is_swapped_after_step_1": ("audit_movement", "optimizer"),
    "optimizer_does_something_else": ("audit_movement", "moved the parameters 0 times"),
    "batch_is_trained_on_twice": ("audit_tokens", "3 passes"),
    "old_batches_are_replayed_from_step_3_on": ("audit_tokens", "other tokens"),
    "token_0_is_left_out_of_the_loss": ("audit_loss", "returned a loss of"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_step_is_caught(fault: str) -> None:
    metric, meaning = FAULTS[fault]
    first = next((finding for finding in audited(Wrong(fault))[0] if finding.failed), None)
    assert first is not None
    assert (first.metric, meaning in first.meaning) == (metric, True), first.meaning


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer": "sgd"},
        {"optimizer": "muon"},
        {"accumulation": 2},
        {"dtype": "bfloat16"},
        {"dropout": 0.1},
    ],
    ids=str,
)
def test_a_right_training_passes_and_is_the_same_bit_for_bit(values: dict[str, Any]) -> None:
    options = {name: values[name] for name in ("dropout", "dtype") if name in values}
    values = {name: value for name, value in values.items() if name not in options}
    config = recipe(steps=STEPS, weight_decay=0.1, grad_clip=1.0, **values)
    states = [new_state(config, **options) for _ in range(2)]
    torch.manual_seed(1)
    found, history = audited(next_token_step, states[0], **values)
    torch.manual_seed(1)
    batches = sampler(config.batch_size * config.accumulation)
    plain = train(states[1], batches, config, clock=CPUClock())
    assert [finding for finding in found if finding.failed] == []
    assert len(found) == 3 * 3
    assert all(finding.value is not None for finding in found)
    assert losses(history) == losses(plain)
    weights = (fingerprint(state.module.parameters()).tolist() for state in states)
    assert next(weights) == next(weights)


def test_what_a_training_pass_leaves_in_the_model_is_put_back() -> None:
    class Counting(nn.Module):
        """Counts its passes, in a buffer and in an attribute, and both change what it computes."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.passes = inner, 0
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.inner(tokens)
            self.passes += 1
            self.mean.lerp_(logits.detach().mean(), 0.1)
            return logits * (1 + 0.01 * self.passes) + self.mean

    def state() -> TrainState:
        config = recipe(steps=STEPS)
        return TrainState.create(Counting(new_state(config).module), config)

    found, history = audited(next_token_step, state())
    plain = train(state(), sampler(), recipe(steps=STEPS, weight_decay=0.1, grad_clip=1.0), clock=CPUClock())
    assert losses(history) == losses(plain)
    assert not any(finding.failed for finding in found)


def test_the_clock_stands_still_while_the_audit_works() -> None:
    class Clock(CPUClock):
        """Every mark is a second after the last."""

        now = 0

        def mark(self) -> int:
            Clock.now += 1_000_000_000
            return Clock.now

    config = recipe(steps=STEPS)
    state, clock = new_state(config), Clock()
    history = train(state, sampler(), config, clock=clock, audit=StepAudit(state, SEED, clock, lambda finding: None))
    seconds = {record.step: record.seconds for record in history.steps}
    audit = StepAudit(state, SEED, clock, lambda finding: None)
    watched = {step for step in range(STEPS) if audit.due(step)}
    assert len(watched) == 3
    assert all(seconds[step] == (3 if step in watched else 1) for step in seconds), "of five marks, two pauses of one"


def test_a_step_that_loss_scaling_skips_moves_nothing_and_is_no_fault() -> None:
    config = recipe(steps=STEPS, weight_decay=0.1)
    state = new_state(config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def infinite_at_first(state: TrainState, batch: Batch) -> Tensor:
        loss = next_token_loss(state, batch)
        state.backward(loss)
        if state.step == 0:
            weight = max(state._parameters, key=torch.Tensor.numel)
            assert weight.grad is not None
            weight.grad.flatten()[0] = torch.inf
        state.update()
        return loss.detach()

    found, _ = audited(infinite_at_first, state)
    assert found
    assert [finding.meaning for finding in found if finding.failed] == []
