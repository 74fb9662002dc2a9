"""Warm-up ends when the times are steady, a drift is flagged, and no sample is ever dropped."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from archbench.measure.steady import FLAG_LEVEL, WINDOW, count_outliers, has_trend, repeat_until_steady


class Script:
    """Work whose durations are written down beforehand, and the clock it moves."""

    def __init__(self, durations: Iterable[float]) -> None:
        self._durations = iter(durations)
        self.now = 0.0
        self.played: list[float] = []

    def work(self) -> None:
        self.played.append(next(self._durations))
        self.now += self.played[-1]

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        self.now += 100.0  # waiting for the device is never part of a sample

    def flush(self) -> None:
        self.now += 100.0  # neither is flushing


def noise(n: int, seed: int, spread: float = 0.05) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(0.0, spread, n)


def test_every_call_is_kept_in_order() -> None:
    script = Script(noise(200, seed=1))
    samples = repeat_until_steady(script.work, script, warmup=3, repeats=20)
    assert samples.warmup_seconds + samples.seconds == pytest.approx(script.played)
    assert len(samples.seconds) == 20
    assert samples.stationary


def test_warm_up_goes_on_until_slow_first_calls_are_over() -> None:
    cooling = 1 + 3 * np.exp(-np.arange(200) / 5)  # 4 seconds, falling to 1
    script = Script(cooling * noise(200, seed=2, spread=0.01))
    samples = repeat_until_steady(script.work, script, warmup=2, repeats=10, max_warmup=100)
    assert len(samples.warmup_seconds) > 2 * WINDOW
    assert samples.stationary
    assert samples.median == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("warmup", "least"), [(0, WINDOW), (3, WINDOW), (15, 15)])
def test_warm_up_is_at_least_what_was_asked_and_what_the_test_needs(warmup: int, least: int) -> None:
    script = Script(noise(100, seed=3))
    assert len(repeat_until_steady(script.work, script, warmup=warmup, repeats=3).warmup_seconds) >= least


def test_times_that_never_settle_stop_at_the_limit_and_are_flagged() -> None:
    script = Script(1.1 ** np.arange(100))
    samples = repeat_until_steady(script.work, script, warmup=2, repeats=5, max_warmup=20)
    assert len(samples.warmup_seconds) == 20
    assert not samples.stationary
    assert len(samples.seconds) == 5


def test_a_warm_up_too_short_to_judge_is_not_called_stationary() -> None:
    script = Script(np.ones(100))
    assert not repeat_until_steady(script.work, script, warmup=1, repeats=5, max_warmup=3).stationary


def test_a_step_among_the_samples_is_flagged() -> None:
    script = Script(np.concatenate([np.ones(20), np.full(30, 1.3)]) * noise(50, seed=4, spread=0.01))
    samples = repeat_until_steady(script.work, script, warmup=10, repeats=20, max_warmup=10)
    assert not samples.stationary


def test_false_alarms_on_steady_times_are_as_rare_as_the_level_says() -> None:
    alarms = sum(has_trend(noise(20, seed)) for seed in range(2000))
    # Binomial: four standard deviations above 2000 × 0.01.
    assert alarms <= 2000 * FLAG_LEVEL + 4 * (2000 * FLAG_LEVEL) ** 0.5


def test_false_alarms_are_rare_in_the_whole_procedure_too() -> None:
    flagged = 0
    for seed in range(500):
        script = Script(noise(200, seed))
        flagged += not repeat_until_steady(script.work, script, warmup=2, repeats=5).stationary
    assert flagged <= 15, "3 % of 500: the level is 1 %"


def test_a_drift_of_a_tenth_is_found_under_noise() -> None:
    drift = np.linspace(1.0, 1.1, 30)
    assert sum(has_trend(drift * noise(30, seed, spread=0.02)) for seed in range(100)) >= 99


def test_a_drift_too_small_to_matter_is_let_pass() -> None:
    assert not has_trend(np.linspace(1.0, 1.005, 200))


def test_a_long_training_run_is_judged_in_moments() -> None:
    assert not has_trend(noise(100_000, seed=5))
    assert has_trend(np.linspace(1.0, 1.2, 100_000) * noise(100_000, seed=5))


def test_equal_times_have_no_trend() -> None:
    assert not has_trend([1.0] * 10)
    assert not has_trend([])


def test_outliers_are_counted_and_stay_in_the_samples() -> None:
    durations = noise(60, seed=6, spread=0.01)
    durations[[20, 40]] = 7.0
    script = Script(durations)
    samples = repeat_until_steady(script.work, script, warmup=10, repeats=50, max_warmup=10)
    assert samples.outliers >= 2
    assert samples.seconds.count(pytest.approx(7.0)) == 2
    assert count_outliers([1.0, 1.0, 1.1, 1.1, 9.0, 0.01]) == 2
