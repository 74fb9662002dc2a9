"""Budgets end training where they say, in any unit; validation and checkpoints cost none of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from archbench.errors import ConfigError
from archbench.measure.clock import CPUClock
from archbench.training.budgets import Budget, Spent
from archbench.training.loop import train
from training_setup import B, T, losses, new_state, recipe, run, sampler


@pytest.mark.parametrize(
    ("budget", "updates"),
    [({"steps": 7}, 7), ({"tokens": 7 * B * T}, 7), ({"tokens": 6 * B * T + 1}, 7), ({"flops": 7 * B * T * 100.0}, 7)],
)
def test_training_ends_with_the_update_that_reaches_the_budget(budget: dict[str, float], updates: int) -> None:
    config = recipe(**budget)
    history = train(new_state(config), sampler(), config, clock=CPUClock(), flops_per_token=100.0)
    assert len(history.steps) == updates
    assert history.tokens == updates * B * T


def test_a_budget_gives_the_same_run_whatever_its_unit() -> None:
    config = recipe(flops=12 * B * T * 100.0)
    in_flops = train(new_state(config), sampler(), config, clock=CPUClock(), flops_per_token=100.0)
    assert losses(in_flops) == losses(run(recipe(steps=12))) == losses(run(recipe(tokens=12 * B * T)))


class EvenClock:
    """A clock by which every step takes 1/128 s: a power of two, so that ten of them add up to the last bit."""

    def mark(self) -> None:
        return None

    def seconds(self, start: None, end: None) -> float:
        return 1 / 128


def test_a_budget_in_seconds_counts_the_seconds_of_steps_alone() -> None:
    config = recipe(seconds=10 / 128, validate_every=1)
    validated: list[nn.Module] = []

    def slow_validation(model: nn.Module) -> float:
        validated.append(model)
        time.sleep(0.02)
        return 1.0

    history = train(new_state(config), sampler(), config, clock=EvenClock(), validate=slow_validation)
    assert len(history.steps) == 10
    assert len(validated) == 10
    assert history.seconds == 10 / 128
    rates = [record.lr for record in history.steps]
    assert max(rates) > 0.9 * config.learning_rate
    assert rates[-1] < 0.2 * config.learning_rate, "the schedule follows the seconds"


def test_a_budget_in_flops_needs_the_models_flops() -> None:
    config = recipe(flops=1e12)
    with pytest.raises(ConfigError, match=r"training\.flops.*tokens, steps or seconds"):
        train(new_state(config), sampler(), config, clock=CPUClock())


def test_progress_is_a_share_that_never_passes_one() -> None:
    budget = Budget.from_config(recipe(tokens=100), 1.0)
    assert [budget.progress(Spent(1, tokens, 0.0)) for tokens in (0, 50, 100, 900)] == [0.0, 0.5, 1.0, 1.0]


def test_validation_runs_in_evaluation_mode_and_changes_nothing(tmp_path: Path) -> None:
    plain = run(recipe(steps=9), dropout=0.3)
    config = recipe(steps=9, validate_every=4)

    def validate(model: nn.Module) -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(1000)  # a validation that draws random numbers must not move the training's
        return 2.5

    history = train(new_state(config, dropout=0.3), sampler(), config, clock=CPUClock(), validate=validate)
    assert history.validations == [(4, 4 * B * T, 2.5), (8, 8 * B * T, 2.5), (9, 9 * B * T, 2.5)]
    assert losses(history) == losses(plain)
