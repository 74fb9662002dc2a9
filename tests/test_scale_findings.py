"""What a ladder's points are taken to say: when a law is fitted, how it is tested, and when exponents are compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from archbench.study import findings
from archbench.study import law as laws
from archbench.study.findings import Finding, Point, find, rank
from archbench.study.law import Law, fit

TRUTH = Law(E=1.2, A=60.0, B=900.0, alpha=0.4, beta=0.5)
SIZES, BUDGETS = (25_000, 50_000, 100_000, 200_000), (250_000, 500_000, 1_000_000)


@pytest.fixture(autouse=True, scope="module")
def _few_starts() -> Iterator[None]:
    """Fits from five of the sixty starts: what more of them find is in tests/test_scaling_law.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "STARTS_REFINED", 5)
        yield


def ladder(
    sizes: Sequence[int] = SIZES, budgets: Sequence[int] = BUDGETS, law: Law = TRUTH, noise: float = 0.0, seed: int = 0
) -> list[Point]:
    random = np.random.default_rng(seed)
    return [
        Point(
            size=N, budget=D, N=N, D=D, flops=6.0 * N * D, learning_rate=1e-3, epochs=1.0,
            losses=(float(law.loss(N, D)) * float(np.exp(noise * random.normal())),),
        )
        for N, D in itertools.product(sizes, budgets)
    ]  # fmt: skip


def fitted(name: str, points: Sequence[Point]) -> Finding:
    """With its law, without intervals and test, which comparing exponents does not look at."""
    found = fit([point.N for point in points], [point.D for point in points], [point.loss for point in points])
    return Finding(name, tuple(points), found, {}, None, None)


@pytest.fixture(scope="module")
def twelve() -> Finding:
    """Of a ladder that follows the law exactly; its intervals, which are tested elsewhere, from few resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "bootstrap", partial(laws.bootstrap, resamples=10))
        return find("some", ladder())


def test_twelve_points_are_fitted_and_eleven_are_not(twelve: Finding) -> None:
    points, found = ladder(), twelve
    assert found.fitted is not None
    assert found.reason is None
    assert found.fitted.law.alpha == pytest.approx(TRUTH.alpha, rel=0.01)
    few = find("some", points[1:])
    assert few.fitted is None
    assert few.held_out is None
    assert "11 points" in (few.reason or "")


def test_twelve_seeds_of_one_size_are_no_twelve_points() -> None:
    (point,) = ladder(SIZES[:1], BUDGETS[:1])
    found = find("some", [replace(point, losses=point.losses * 12)])
    assert found.fitted is None
    assert "1 points" in (found.reason or "")


@pytest.mark.parametrize(
    ("sizes", "budgets", "what"),
    [(SIZES[:3], (1, 2, 4, 8), "3 sizes"), ((1, 2, 4, 8, 16, 32), BUDGETS[:2], "2 budgets")],
)
def test_points_that_determine_no_exponent_are_not_fitted(
    sizes: Sequence[int], budgets: Sequence[int], what: str
) -> None:
    found = find("some", ladder([100_000 * N for N in sizes], [100_000 * D for D in budgets]))
    assert found.fitted is None
    assert what in (found.reason or "")


@pytest.mark.slow
def test_the_largest_size_is_tested_and_takes_no_part_in_the_law_that_is_tested() -> None:
    points = ladder(noise=0.003)
    test = find("some", points).held_out
    assert test is not None
    assert {one.size for one in test.forecasts} == {max(SIZES)}
    worse = [replace(point, losses=(2 * point.loss,)) if point.size == max(SIZES) else point for point in points]
    other = find("some", worse).held_out
    assert other is not None
    assert other.fitted == test.fitted
    assert other.error == pytest.approx(0.5, abs=0.05)  # half of what was measured
    assert all(one.error < 0 for one in other.forecasts)


def test_a_law_that_holds_predicts_better_than_no_change(twelve: Finding) -> None:
    test = twelve.held_out
    assert test is not None
    assert test.error < 1e-3
    smaller = TRUTH.loss(100_000, np.array(BUDGETS)) / TRUTH.loss(200_000, np.array(BUDGETS)) - 1
    assert test.unchanged == pytest.approx(float(smaller.mean()), rel=1e-6)


def test_losses_that_rise_with_size_are_no_law() -> None:
    points = [replace(point, losses=(3 - point.loss,)) for point in ladder(law=replace(TRUTH, E=0.1))]
    found = find("some", points)
    assert found.fitted is None
    assert found.reason


def test_exponents_of_fewer_than_forty_points_are_not_compared(twelve: Finding) -> None:
    few = [twelve, replace(twelve, architecture="other")]
    ranking, reason = rank(few)
    assert ranking == []
    assert "40" in (reason or "")
    without = find("none", ladder()[1:])
    ranking, reason = rank([few[0], without])
    assert ranking == []
    assert "none" in (reason or "")
    assert rank(few[:1]) == ([], None)


MANY = (tuple(int(N) for N in np.geomspace(2e4, 2e6, 8)), tuple(int(D) for D in np.geomspace(2e5, 1e7, 5)))


def test_forty_points_tell_exponents_apart_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "RANKING_RESAMPLES", 60)
    steeper = replace(TRUTH, alpha=0.6, A=500.0)
    ranking, reason = rank(
        [fitted("one", ladder(*MANY, noise=0.002)), fitted("two", ladder(*MANY, law=steeper, noise=0.002, seed=1))]
    )
    assert reason is None
    verdicts = {one.exponent: one.verdict for one in ranking}
    assert verdicts == {"alpha": "larger", "beta": "not told apart"}


@pytest.mark.slow
def test_exponents_that_are_the_same_are_seldom_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "RANKING_RESAMPLES", 300)
    claims, repeats = 0, 30
    for repeat in range(repeats):
        pair = [fitted(name, ladder(*MANY, noise=0.005, seed=2 * repeat + number)) for number, name in enumerate("ab")]
        ranking, _ = rank(pair)
        claims += any(one.verdict != "not told apart" for one in ranking)
    assert claims <= 5, claims  # of 30 at 5 %, more than 5 come of chance once in 300 times
