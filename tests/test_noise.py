"""The noise floor: two equal things look equal, drifts cancel, and the interval holds what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from archbench.measure.noise_floor import floor_of, measure_noise, noise_floor
from test_steady import Script


def test_a_steady_drift_cancels_between_the_two_orders() -> None:
    script = Script(1.001 ** np.arange(500))
    floor = noise_floor(script.work, script, pairs=40)
    assert floor.median == pytest.approx(1.0, abs=2e-3)
    assert len(floor.ratios) == 40
    assert sum(ratio > 1 for ratio in floor.ratios) == 20, "A comes first in one half of the pairs, B in the other"


def test_the_medians_interval_covers_1_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    floors = [floor_of(list(rng.lognormal(0, 0.1, 40))) for _ in range(1000)]
    covered = sum(floor.median_low <= 1 <= floor.median_high for floor in floors)
    assert covered >= 940  # the interval promises at least 95 %; two standard deviations of 1000 draws below
    assert all(floor.low <= floor.median_low <= floor.median <= floor.median_high <= floor.high for floor in floors)


def test_the_real_floor_of_this_machine_lies_about_1() -> None:
    floor = measure_noise("cpu", pairs=10)
    assert floor.low <= 1 <= floor.high
