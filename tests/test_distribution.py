"""Several ranks train as one process does: the same losses, and checkpoints that any number of ranks continues."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from archbench_plugins.gpt1 import GPT1

import archbench
from archbench.config import ParallelName, TrainingConfig
from archbench.data.batches import Batch, BatchSampler
from archbench.errors import PluginError
from archbench.measure.clock import CPUClock
from archbench.training.distribution import PeerError, Ranks, repeated_blocks
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.rehearsal import rehearse
from archbench.training.state import TrainState
from archbench.training.step_audit import Finding, StepAudit
from rank_groups import on_ranks
from test_builtin_architectures import NAMES
from training_setup import T, V, losses, model_config, recipe, sampler

STEPS = 50
TOLERANCE = 1e-5
"""Relative, of a loss in float32 after up to 50 updates: sums over ranks are in another order."""

SMALL: dict[str, Any] = {"n_layer": 2, "context_length": T, "vocab_size": V}
MORE: dict[str, dict[str, Any]] = {"hybrid": {"n_layer": 3}}


def training(name: str, ranks: Ranks, config: TrainingConfig, checkpoints: Path | None = None) -> TrainingHistory:
    """A small model of that architecture, trained; every audited step is right."""
    architecture = archbench.load(name)
    sizes = {**SMALL, **MORE.get(name, {})}
    torch.manual_seed(1)
    model = architecture.build(architecture.config("nano", **sizes))
    blocks = ranks.shard_model(model, torch.device("cpu"))
    assert blocks == (sizes["n_layer"] if ranks.sharded else None)
    state = TrainState.create(model, config, ranks=ranks)
    batches: BatchSampler = sampler(config.batch_size * config.accumulation)
    if ranks.size > 1:
        rehearse(state, architecture.train_step, batches.batch(0), name)
    audit = StepAudit(state, 0, CPUClock(), right)
    return train(
        state,
        batches,
        config,
        clock=CPUClock(),
        step=architecture.train_step,
        checkpoints=checkpoints,
        audit=audit,
    )


def right(finding: Finding) -> None:
    assert not finding.failed, finding.meaning


def all_losses(ranks: Ranks, names: list[str], config: TrainingConfig) -> dict[str, list[float]]:
    return {name: losses(training(name, ranks, config)) for name in names}


RECIPE = recipe(steps=STEPS, batch_size=4, accumulation=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def alone() -> dict[str, list[float]]:
    return all_losses(Ranks(), NAMES, RECIPE)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_have_the_losses_of_one_process(size: int, parallel: ParallelName, alone: dict[str, list[float]]) -> None:
    """Two micro-batches of four sequences, which do not divide by three; and all ranks report the same."""
    for every in on_ranks(size, all_losses, NAMES, RECIPE, parallel=parallel):
        for name in NAMES:
            assert every[name] == pytest.approx(alone[name], rel=TOLERANCE), name
            assert every[name][-1] < every[name][0]


def continued(ranks: Ranks, folder: Path, config: TrainingConfig) -> list[float]:
    return losses(training("mixtral", ranks, config, folder))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_checkpoint_is_continued_by_another_number_of_ranks(parallel: ParallelName, tmp_path: Path) -> None:
    """Two ranks, then three, then one process: the losses of one that never stopped, from the one format of files."""
    config = recipe(steps=18, batch_size=4, accumulation=2, checkpoint_every=6, learning_rate=1e-3)
    whole = continued(Ranks(), tmp_path / "whole", config)
    folder = tmp_path / "changing"
    for size, until in ((2, 6), (3, 12)):
        stopped = on_ranks(size, until_step, folder, config, until, parallel=parallel)
        assert all(len(found) == until for found in stopped)
    assert continued(Ranks(), folder, config) == pytest.approx(whole, rel=TOLERANCE)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000012", "step-00000018"]


def until_step(ranks: Ranks, folder: Path, config: TrainingConfig, step: int) -> list[float]:
    """The losses of a training that is interrupted after that many updates, on one rank."""
    signalled = ranks.size - 1

    class Interrupting(StepAudit):
        def due(self, number: int) -> bool:
            if number == step - 1 and ranks.rank == signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            return False

    signal.signal(signal.SIGTERM, interrupt)
    name, sizes = "mixtral", SMALL
    architecture = archbench.load(name)
    torch.manual_seed(1)
    model = architecture.build(architecture.config("nano", **sizes))
    ranks.shard_model(model, torch.device("cpu"))
    state = TrainState.create(model, config, ranks=ranks)
    with pytest.raises(KeyboardInterrupt if ranks.rank == signalled else PeerError):
        train(
            state, sampler(config.batch_size * config.accumulation), config, clock=CPUClock(),
            step=architecture.train_step, checkpoints=folder, audit=Interrupting(state, 0, CPUClock(), right),
        )  # fmt: skip
    assert state.step == step
    return [0.0] * state.step


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def refusals(ranks: Ranks) -> dict[str, str]:
    """By the kind of wrong training step, why it is refused before the training."""
    found = {}
    for name, step in WRONG.items():
        torch.manual_seed(1)
        state = TrainState.create(GPT1(model_config()), RECIPE, ranks=ranks)
        before = [parameter.detach().clone() for parameter in state.module.parameters()]
        with pytest.raises(PluginError) as refused:
            rehearse(state, step, sampler(8).batch(0), name)
        found[name] = refused.value.cause
        assert all(map(torch.equal, before, state.module.parameters()))
    return found


def not_by_model(state: TrainState, batch: Batch) -> torch.Tensor:
    loss = batch_loss(state.module, batch)
    state.backward(loss)
    state.update()
    return loss


def own_backward(state: TrainState, batch: Batch) -> torch.Tensor:
    loss = batch_loss(state.model, batch)
    loss.backward()
    state.update()
    return loss


def unused_parameter(state: TrainState, batch: Batch) -> torch.Tensor:
    states = state.model(batch.inputs, logits=False)
    loss = states.detach().square().mean() + sum(parameter.sum() for parameter in state.module.blocks.parameters())
    state.backward(loss)
    state.update()
    return loss.detach()


def batch_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())


WRONG = {"not_by_model": not_by_model, "own_backward": own_backward, "unused_parameter": unused_parameter}


@pytest.mark.slow
def test_a_training_step_that_cannot_be_shared_is_refused_before_training() -> None:
    first, second = on_ranks(2, refusals)
    assert first == second
    assert "state.model" in first["not_by_model"]
    assert "state.backward" in first["own_backward"]
    assert "embedding" in first["unused_parameter"]


def hooked(ranks: Ranks) -> str:
    model = GPT1(model_config())
    model.blocks[1].attention.qkv.weight.register_hook(lambda gradient: gradient)
    with pytest.raises(PluginError) as refused:
        ranks.shard_model(model, torch.device("cpu"))
    return refused.value.cause


def test_fsdp_refuses_a_tensor_hook_that_it_would_lose() -> None:
    assert "blocks.1.attention.qkv.weight" in hooked(Ranks(0, 2, "fsdp"))


def test_the_shares_of_ranks_are_the_batch() -> None:
    batch = sampler(8).batch(0)
    shares = [Ranks(rank, 3).share(batch, 2) for rank in range(3)]
    assert [len(share.inputs) for share in shares] == [4, 2, 2]
    rows = [row for micro in range(2) for share in shares for row in share.split(2)[micro].inputs.tolist()]
    assert rows == batch.inputs.tolist()


def test_each_layer_of_a_list_is_a_block() -> None:
    model = GPT1(model_config())
    assert repeated_blocks(model) == list(model.blocks)
    assert repeated_blocks(torch.nn.Linear(2, 2)) == []
