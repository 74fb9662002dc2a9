"""Training steps against the core's own: the loss, the gradient, the movement and the work of several updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archbench.config import TrainingConfig
from archbench.data.batches import Batch
from archbench.kernels.triton_guard import flop_counter
from archbench.testing.evaluation import Fault, check
from archbench.testing.step_diagnosis import Step, other_inside, wrong_gradient, wrong_loss
from archbench.testing.subject import Subject, logits_of, seed_generators
from archbench.testing.update_audit import ADVICE, UpdateAudit
from archbench.training.state import TrainState

LOSS_TOLERANCE = 1e-4
"""Relative. The same sum in another order differs by 1e-6 in float32; other targets or another mean by 1e-3 and more,
since all random tokens are about equally hard to predict."""

WORK_TOLERANCE = 0.1
"""Of the FLOPs of one forward and backward pass: room for an auxiliary loss."""

POSITIONS = 32
"""Read in a training step: as good as a whole context, which would take a large model long."""

MEMORY_TOLERANCE = 0.02
"""Nats a token that a batch may become more likely, beyond another one, by what is learnt without the optimizer."""

RATE = 3e-3
"""The learning rate: enough for a batch to become easier each time."""

UPDATES = ((0, 1), (0, 2), (0, 1), (1, 1), (2, 1))
"""Batch and micro-batches of each update. The same batch three times becomes easy, the next one is hard."""


COUNTED = 3
"""The update whose FLOPs are counted, from 0 on. That each reads its own tokens once is looked at in all."""


@check(gate=True, needs=("logits",))
def check_train_step(subject: Subject) -> str:
    """Training losses, budgets and steps are compared between models: each has to be one update by the recipe, and its
    loss the mean cross-entropy in nats a token."""
    trial = _Trial(subject)
    for number, (batch, accumulation) in enumerate(UPDATES):
        trial.take(_with_special_ids(subject, batch), accumulation, seed=100 + number)
    trial.assert_still_at_rate_zero()
    beside = max(step.beside for step in trial.steps)
    also = f"; {beside:.0%} of the gradient is of something else than that loss" if beside > 0.02 else ""
    return (
        f"{trial.steps[0].expected:.4g} nats/token, as from the logits; {len(UPDATES)} updates, one of two "
        f"micro-batches, as by the recipe{also}"
    )


def _with_special_ids(subject: Subject, seed: int) -> Batch:
    """Random tokens, (2, T) each; of seed 0 with the first and last ids, which are often padding or separators."""
    T, V = min(subject.T, POSITIONS), subject.V
    tokens = subject.tokens(2, T + 1, seed)
    ids = sorted({*range(min(4, V)), *range(max(0, V - 4), V)})[:T]
    if seed == 0:  # the others have to be hard for a model that was trained on it
        tokens[0, 1 : 1 + len(ids)] = torch.tensor(ids, device=tokens.device)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


@dataclass
class _Trial:
    """Updates of one model by the default recipe, each held against the core's own gradient and AdamW."""

    subject: Subject
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = self.subject.model().train()
        values: dict[str, Any] = {"steps": 1, "batch_size": 1, "learning_rate": RATE}
        recipe = TrainingConfig(**values)
        self.state = TrainState.create(self.model, recipe, device=self.subject.device)

    def take(self, batch: Batch, accumulation: int, seed: int) -> None:
        """One update; Fault where it is not the one that is asked for."""
        self.state.accumulation = accumulation
        step = Step(batch, accumulation, seed, self.steps, UpdateAudit(self.state))
        self._own(step)
        self._theirs(step)
        share = f" with the batch in {accumulation} micro-batches" if accumulation > 1 else ""
        if len(self.steps) > 1:
            share = f" in update {len(self.steps) + 1}"
        step.where = share
        if self.state.step != len(self.steps) + 1 or step.audit.updates != 1:
            raise Fault(f"in train_step {step.audit.faults()[0]}{share}. {ADVICE}")
        if not abs(step.loss - step.expected) <= LOSS_TOLERANCE * max(step.expected, 1.0):
            after = logits_of(self.model, batch.inputs, seed)
            raise Fault(
                f"train_step returned a loss of {step.loss:.5g}{share}, and the mean cross-entropy of the batch before "
                f"the update is {step.expected:.5g} nats/token, from the model's own logits: "
                f"{wrong_loss(step, self.model, after)}"
            )
        if faults := step.audit.faults():
            raise Fault(f"in train_step {faults[0]}{share}. {ADVICE}")
        if not self.steps and (fault := other_inside(step, self.model)):
            raise Fault(fault)
        self._assert_work(step)
        if fault := wrong_gradient(step, self.model):
            raise Fault(f"in train_step {fault}")
        step.weights, step.logits, step.inside = {}, [], []
        self.state.tokens += batch.targets.numel()
        self.steps.append(step)

    def _own(self, step: Step) -> None:
        """What the core makes of the batch: loss, logits, gradients and FLOPs, from the same weights and buffers."""
        step.weights = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        seed_generators(step.seed, step.batch.inputs.device)
        with _buffers_kept(self.model), self._counting() as counted:
            for micro in self.state.split(step.batch):
                logits = self.model(micro.inputs)  # (B, T, V)
                loss = F.cross_entropy(logits.flatten(0, 1).float(), micro.targets.flatten())
                torch.autograd.backward(loss / step.accumulation)
                step.logits.append(logits.detach().float())
        step.flops = counted()
        step.reference = {
            name: step.audit.sampled(parameter.grad)
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        self.model.zero_grad()
        step.expected = float(F.cross_entropy(torch.cat(step.logits).flatten(0, 1), step.batch.targets.flatten()))

    def _theirs(self, step: Step) -> None:
        """The plugin's update."""
        seed_generators(step.seed, step.batch.inputs.device)
        inside = step.inside

        def record(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            tokens = given[0] if given else named.get("tokens")
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(tokens, Tensor) and isinstance(output, Tensor):
                inside.append((tokens.detach(), output.detach(), named.get("logits") is False))

        handle = self.model.register_forward_hook(record, with_kwargs=True)
        try:
            with step.audit, self._counting() as counted:
                step.loss = float(self.subject.architecture.train_step(self.state, step.batch))
        finally:
            handle.remove()
        step.flops_done = counted()

    @contextmanager
    def _counting(self) -> Iterator[Callable[[], int]]:
        """Counts FLOPs, in one of the updates: it takes longer than the update."""
        if len(self.steps) != COUNTED:
            yield lambda: 0
            return
        with flop_counter().FlopCounterMode(display=False) as counter:
            yield counter.get_total_flops

    def _assert_work(self, step: Step) -> None:
        asked, read = step.batch.inputs.numel(), sum(tokens.numel() for tokens, *_ in step.inside)
        if read > asked:
            raise Fault(
                f"in train_step the model read {read / asked:.3g} times the tokens of its batch{step.where}, {read} "
                f"for {asked}, so an update costs more, or learns from more text, than is counted. Read each batch "
                "once, and no other"
            )
        if step.flops_done > (1 + WORK_TOLERANCE) * step.flops:
            done = f"{step.flops_done / step.flops:.3g} times the FLOPs" if step.flops else f"{step.flops_done:,} FLOPs"
            raise Fault(
                f"train_step does {done} of one forward and backward pass of the batch{step.where}: models are "
                "compared at equal FLOPs, and what is done beside the model's forward is not counted"
            )

    def assert_still_at_rate_zero(self) -> None:
        """With a learning rate of 0 nothing is learnt; Fault where the model learns in another way."""
        T = min(self.subject.T, POSITIONS)
        batch, other = self.subject.batch(2, T, seed=3), self.subject.batch(2, T, seed=4)
        self.state.accumulation = 1
        self.state.set_learning_rate(0.0)
        parameters = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        buffers = {name: value.detach().clone() for name, value in self.model.named_buffers()}
        before = self._costs(batch, other)
        self.subject.architecture.train_step(self.state, batch)
        for name, value in self.model.named_parameters():
            if not torch.equal(value, parameters[name]):
                raise Fault(f"train_step changed parameter {name!r} although the learning rate was 0. {ADVICE}")
        gained = [old - new for old, new in zip(before, self._costs(batch, other), strict=True)]
        if gained[0] - gained[1] > MEMORY_TOLERANCE:
            changed = [
                repr(n) for n, value in self.model.named_buffers() if not torch.equal(value, buffers.get(n, value))
            ]
            where = f"buffer {changed[0]}" if changed else "something outside its parameters and buffers"
            raise Fault(
                f"with a learning rate of 0 train_step still makes its own batch more likely, by {gained[0]:.2g} "
                f"nats/token, and another by {gained[1]:.2g}: the model learns the text in {where}, without the "
                "optimizer. Make what learns an nn.Parameter"
            )

    def _costs(self, *batches: Batch) -> list[float]:
        self.model.eval()
        costs = [
            float(F.cross_entropy(logits_of(self.model, batch.inputs).flatten(0, 1), batch.targets.flatten()))
            for batch in batches
        ]
        self.model.train()
        return costs


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Running statistics move in training mode; here they are put back."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)
