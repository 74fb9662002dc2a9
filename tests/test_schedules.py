"""Learning-rate schedules have their published shapes over any budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archbench.measure.clock import CPUClock
from archbench.training.loop import train
from archbench.training.schedules import learning_rate
from training_setup import new_state, recipe, sampler

PEAK = 0.4


def test_cosine_warms_up_linearly_and_falls_along_half_a_cosine() -> None:
    config = recipe(schedule="cosine", learning_rate=PEAK, warmup_fraction=0.2, min_lr_ratio=0.1)
    at = [learning_rate(config, progress) / PEAK for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert at == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])


def test_wsd_is_flat_and_then_falls_linearly() -> None:
    config = recipe(schedule="wsd", learning_rate=PEAK, warmup_fraction=0.1, decay_fraction=0.4, min_lr_ratio=0.0)
    at = [learning_rate(config, progress) / PEAK for progress in (0.05, 0.1, 0.5, 0.6, 0.8, 1.0)]
    assert at == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_constant_is_flat_after_its_warm_up() -> None:
    config = recipe(schedule="constant", learning_rate=PEAK, warmup_fraction=0.5)
    at = [learning_rate(config, progress) / PEAK for progress in (0.25, 0.5, 1.0)]
    assert at == pytest.approx([0.5, 1.0, 1.0])


@given(
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.floats(0.0, 0.999),
    decay=st.floats(0.001, 1.0),
    lowest=st.floats(0.0, 1.0),
    progress=st.floats(0.0, 1.0),
)
def test_no_rate_is_negative_or_above_the_peak(
    schedule: str, warmup: float, decay: float, lowest: float, progress: float
) -> None:
    config = recipe(
        schedule=schedule, learning_rate=PEAK, warmup_fraction=warmup, decay_fraction=decay, min_lr_ratio=lowest
    )
    assert 0.0 <= learning_rate(config, progress) <= PEAK * (1 + 1e-12)


def test_no_step_is_wasted_on_a_rate_of_zero() -> None:
    config = recipe(steps=10, warmup_fraction=0.5, min_lr_ratio=0.0)
    history = train(new_state(config), sampler(), config, clock=CPUClock())
    rates = [record.lr / config.learning_rate for record in history.steps]
    # Each update takes the rate of its middle: update k of 10 that of (k + 0.5) / 10.
    assert rates[:5] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert min(rates) > 0.0
