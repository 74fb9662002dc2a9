"""A run that diverges ends with a record of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from archbench.data.batches import Batch
from archbench.measure.clock import CPUClock
from archbench.training.checkpoints import latest_checkpoint, load_weights
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.state import TrainState
from archbench.training.steps import next_token_step
from training_setup import new_state, recipe, sampler


def test_an_absurd_learning_rate_ends_in_divergence_not_in_an_exception() -> None:
    config = recipe(steps=200, learning_rate=1e30, optimizer="sgd", schedule="constant", grad_clip=None)
    history = train(new_state(config), sampler(), config, clock=CPUClock())
    assert history.diverged_at is not None
    assert history.diverged_at == history.steps[-1].step == len(history.steps) - 1
    last = history.steps[-1]
    assert not (math.isfinite(last.loss) and math.isfinite(last.grad_norm or 0.0))
    assert all(math.isfinite(record.loss) for record in history.steps[:-1])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_non_finite_gradient_is_divergence_though_the_loss_is_finite(poison: float, tmp_path: Path) -> None:
    def step(state: TrainState, batch: Batch) -> torch.Tensor:
        if state.step == 5:
            next(state.model.parameters()).register_hook(lambda gradient: gradient * poison)
        return next_token_step(state, batch)

    config = recipe(steps=20, checkpoint_every=3)
    validations: list[int] = []
    history = train(
        new_state(config), sampler(), config, clock=CPUClock(), step=step, checkpoints=tmp_path,
        validate=lambda model: validations.append(1) or 0.0,
    )  # fmt: skip
    assert history.diverged_at == 5
    assert math.isfinite(history.steps[-1].loss)
    assert validations == [], "a broken model's validation loss would be a number nobody should read"
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000003"
    assert all(tensor.isfinite().all() for tensor in load_weights(newest).values())


def test_a_diverged_history_says_so_after_being_stored() -> None:
    config = recipe(steps=5)
    history = train(new_state(config), sampler(), config, clock=CPUClock())
    again = TrainingHistory.from_tensors(history.to_tensors())
    assert again == history
