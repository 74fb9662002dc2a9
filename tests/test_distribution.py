"""Several ranks train as one process does: the same losses, and checkpoints that any number of ranks continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import archbench
from archbench.config import ParallelName, TrainingConfig
from archbench.data.batches import BatchSampler
from archbench.measure.clock import CPUClock
from archbench.training.distribution import Ranks
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.rehearsal import rehearse
from archbench.training.state import TrainState
from archbench.training.step_audit import Finding, StepAudit
from rank_groups import on_ranks
from test_builtin_architectures import NAMES
from training_setup import T, V, losses, recipe, sampler

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
