"""The twin of an update in a CUDA graph: what such updates do differently changes no loss and no weight."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archbench_plugins.gpt1 import GPT1
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from archbench.data.batches import Batch, BatchSampler
from archbench.kernels import residual_norm
from archbench.kernels.attention_op import fused_attention
from archbench.kernels.dropout_bits import new_seed, new_seeds
from archbench.measure.clock import CPUClock
from archbench.plugin.registry import load
from archbench.training.captured_update import StaticUpdates, updates_of
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.state import TrainState
from archbench.training.step_audit import Finding, StepAudit
from archbench.training.steps import next_token_step
from archbench.training.updates import Updates
from training_setup import model_config, new_state, recipe, sampler

ARCHITECTURES = ["gpt1", "gpt2", "llama", "mistral", "gemma", "mixtral", "mamba2", "gated-deltanet", "rwkv7", "hybrid"]
RATE = 3e-3


class RoundedRates(Updates):
    """Eager updates whose learning rates are float32, as a GPU holds them: the only difference there is."""

    def begin(self, rate: float, *, watched: bool) -> float:
        return super().begin(float(np.float32(rate)), watched=watched)


def assert_alike(one: TrainState, other: TrainState, histories: tuple[TrainingHistory, TrainingHistory]) -> None:
    for name in ("loss", "grad_norm", "lr"):
        found, expected = ([getattr(record, name) for record in history.steps] for history in histories)
        assert found == expected, name
    weights = other.module.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.module.state_dict().items())
    moments = [state.optimizer.state_dict()["state"] for state in (one, other)]
    assert all(torch.equal(value, moments[1][number][name])
               for number, values in moments[0].items() for name, value in values.items())  # fmt: skip


def both(
    new: Callable[[], TrainState], config: Any, batches: Any, step: Any = next_token_step
) -> tuple[TrainState, TrainState]:
    """A training by static updates, and the same by eager ones; they have to agree bit for bit."""
    states, histories, kinds = [], [], []
    for kind in (lambda state: updates_of("static", state, step), lambda state: RoundedRates(state, step)):
        state = new()
        updates = kind(state)
        histories.append(train(state, batches, config, clock=CPUClock(), updates=updates))
        states.append(state)
        kinds.append((updates.kind, updates.reason))
    assert kinds == [("static", None), ("eager", None)]
    assert_alike(*states, tuple(histories))  # type: ignore[arg-type]
    assert len({record.lr for record in histories[0].steps}) > 2
    return states[0], states[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains_as_by_eager_updates(name: str) -> None:
    """Bit for bit, with dropout where it has any, clipping, two micro-batches and a rate that changes."""
    architecture = load(name)
    T = 24
    dropouts = [field for field, _ in architecture.config("nano") if field.endswith("dropout")]
    assert len(dropouts) == (3 if name.startswith("gpt") else 0)
    config = architecture.config("nano", context_length=T, vocab_size=61, **dict.fromkeys(dropouts, 0.1))
    made = recipe(steps=6, batch_size=2, accumulation=2, learning_rate=RATE, grad_clip=0.1, weight_decay=0.1)
    tokens = (np.cumsum(np.random.default_rng(7).integers(1, 4, size=2_000)) % 61).astype(np.uint16)

    def new() -> TrainState:
        torch.manual_seed(0)
        return TrainState.create(architecture.build(config), made)

    batches = BatchSampler(tokens, batch_size=4, context_length=T, seed=0)
    both(new, made, batches, architecture.train_step)


@pytest.mark.parametrize(("optimizer", "dtype"), [("adam", "bfloat16"), ("sgd", "float32"), ("sgd", "bfloat16")])
def test_other_optimizers_and_dtypes(optimizer: str, dtype: str) -> None:
    made = recipe(optimizer=optimizer, schedule="wsd", weight_decay=0.3)
    both(lambda: new_state(made, dropout=0.2, dtype=dtype), made, sampler())


class Fused(nn.Module):
    """Two layers whose residuals, norms and attention are the operators of the GPU's kernels, with dropout.

    Args:
        again: compute activations again in the backward pass, and their masks with the same seeds.
    """

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.inner = GPT1(model_config())
        self.mixing = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.inner.embedding(tokens)
        for mix, block in zip(self.mixing, self.inner.blocks, strict=True):
            x = (
                checkpoint(self._layer, x, mix, block, use_reentrant=False)
                if self.again
                else self._layer(x, mix, block)
            )
        return self.inner.head(x)  # type: ignore[no-any-return]

    @staticmethod
    def _layer(x: Tensor, mix: nn.Module, block: Any) -> Tensor:
        heads = mix(x).unflatten(-1, (2, 8)).transpose(1, 2)  # (B, H, T, D)
        mixed = fused_attention(heads, heads, heads, window=None, scale=0.3, precision="ieee", dropout=0.2)
        norm = block.attention_norm
        return residual_norm(
            x, mixed.transpose(1, 2).flatten(2), norm.weight, norm.bias, 1e-5, dropout=0.2, training=True
        )


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_masks_of_the_kernels_are_those_of_eager_updates(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their seeds are drawn at once and copied to the device; bit for bit the same, in two micro-batches."""
    module = importlib.import_module("archbench.kernels.residual_norm")
    monkeypatch.setattr(module, "row_kernels_run", lambda device: True)
    made = recipe(accumulation=2, steps=8)

    def new() -> TrainState:
        torch.manual_seed(0)
        return TrainState.create(Fused(again), made)

    updates: list[StaticUpdates] = []

    def step(state: TrainState, batch: Batch) -> Tensor:
        return next_token_step(state, batch)

    states = both(new, made, sampler(8), step)
    assert states[0].step == 8
    fresh = updates_of("static", new(), step)
    assert isinstance(fresh, StaticUpdates)
    updates.append(fresh)
    train(fresh.state, sampler(8), made, clock=CPUClock(), updates=fresh)
    assert len(fresh._seeds) == 2 * 2 * 2, "two kernels in each of two layers, for two micro-batches"
    assert len(fresh._order or ()) == len(fresh._seeds) * (2 if again else 1)


def test_seeds_drawn_at_once_are_those_drawn_one_by_one() -> None:
    torch.manual_seed(3)
    one_by_one = [int(new_seed()) for _ in range(50)]
    after = torch.get_rng_state()
    torch.manual_seed(3)
    assert new_seeds(50).tolist() == one_by_one
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_checkpoint_goes_both_ways(tmp_path: Path, optimizer: str) -> None:
    """Begun by static updates, continued by eager ones, continued by static ones: as if nothing had happened."""
    made = recipe(steps=18, checkpoint_every=6, optimizer=optimizer)

    class StoppedError(Exception):
        pass

    def by(kind: type[Updates], stop: int | None = None) -> tuple[TrainState, TrainingHistory]:
        def step(state: TrainState, batch: Batch) -> Tensor:
            if state.step == stop:
                raise StoppedError
            return next_token_step(state, batch)

        state = new_state(made, dropout=0.2)
        more = {"captured": False} if kind is StaticUpdates else {}
        where = None if stop == 99 else tmp_path
        history = train(state, sampler(), made, clock=CPUClock(), updates=kind(state, step, **more), checkpoints=where)
        return state, history

    with pytest.raises(StoppedError):
        by(StaticUpdates, stop=8)
    saved = torch.load(tmp_path / "step-00000006" / "training.pt", weights_only=True)["optimizer"]["param_groups"]
    assert all(type(group["lr"]) is float and not group.get("capturable") for group in saved)
    with pytest.raises(StoppedError):
        by(RoundedRates, stop=14)
    state, history = by(StaticUpdates)
    assert history.resumed_from == 12
    whole, expected = by(RoundedRates, stop=99)
    assert_alike(state, whole, (history, expected))


def test_the_audit_sees_static_updates_as_others() -> None:
    made = recipe(steps=8, weight_decay=0.1, grad_clip=1.0)
    state = new_state(made, dropout=0.1)
    found: list[Finding] = []
    audit = StepAudit(state, 2, CPUClock(), found.append)
    updates = updates_of("static", state, next_token_step)
    train(state, sampler(), made, clock=CPUClock(), updates=updates, audit=audit)
    assert [one.metric for one in found] == ["audit_loss", "audit_tokens", "audit_movement"] * 3
    for one in found:
        assert one.value is not None
        assert one.value <= (1e-6 if one.metric == "audit_loss" else 0.0)


def test_of_a_replayed_update_the_loss_is_judged() -> None:
    """And where a replay costs otherwise than the model's own logits, that is found."""
    state = new_state(recipe())
    found: list[Finding] = []
    audit = StepAudit(state, 2, CPUClock(), found.append)
    batch = sampler().batch(0)
    audit.start(batch)
    loss = next_token_step(state, batch)
    audit.end(loss, replayed=True)
    audit.start(sampler().batch(1))
    audit.end(loss + 0.01, replayed=True)
    assert [(one.metric, one.failed) for one in found] == [("audit_loss", False), ("audit_loss", True)]


def draws_on_the_host(draw: Callable[[], object]) -> Callable[[TrainState, Batch], Tensor]:
    def step(state: TrainState, batch: Batch) -> Tensor:
        draw()
        return next_token_step(state, batch)

    return step


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), random.random, lambda: np.random.rand()])
def test_a_step_that_draws_random_numbers_on_the_host_is_not_for_a_graph(draw: Callable[[], object]) -> None:
    """A graph would repeat what the host did with them."""
    made = recipe(steps=5)
    state = new_state(made)
    updates = StaticUpdates(state, draws_on_the_host(draw), captured=False)
    updates._captures = True
    train(state, sampler(), made, clock=CPUClock(), updates=updates)
    assert updates.kind == "static"
    assert "random numbers on the CPU" in str(updates.reason)


def test_what_cannot_be_a_graph_says_why() -> None:
    reasons = {
        "graph": "there are no CUDA graphs on a CPU",
        "muon": "MuonWithAdamW takes its learning rate from the host",
        "compiled": "the model is compiled",
    }
    for case, reason in reasons.items():
        made = recipe(optimizer="muon" if case == "muon" else "adamw")
        state = new_state(made, compile=case == "compiled")
        updates = updates_of("graph", state, next_token_step)
        assert (updates.kind, updates.reason) == ("eager", reason)
