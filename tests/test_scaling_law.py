"""The scaling law: a published refit is reproduced, a fit that stopped early is detected, intervals cover the truth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy import optimize

from archbench.errors import UsageError
from archbench.study import law
from archbench.study.law import Fit, Law, bootstrap, fit

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "scale-nano"
TRUTH = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
Points = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def simulated(noise: float, seed: int = 0, sizes: int = 8, budgets: int = 8) -> Points:
    """A ladder of the law above, with log-normal noise."""
    grid = np.meshgrid(np.geomspace(1e7, 1e10, sizes), np.geomspace(1e9, 1e12, budgets))
    N, D = (axis.ravel() for axis in grid)
    return N, D, TRUTH.loss(N, D) * np.exp(noise * np.random.default_rng(seed).normal(size=N.size))


@pytest.fixture(scope="module")
def chinchilla() -> Points:
    """The 240 points of Besiroglu et al. 2024: those read off the figure but the five of the highest loss."""
    folder = os.environ.get("ARCHBENCH_DATA")
    if folder is None:
        pytest.skip("ARCHBENCH_DATA names no folder with chinchilla/svg_extracted_data.csv")
    frame = pd.read_csv(Path(folder) / "chinchilla" / "svg_extracted_data.csv").sort_values("loss").iloc[:-5]
    N, L = frame["Model Size"].to_numpy(), frame["loss"].to_numpy()
    return N, frame["Training FLOP"].to_numpy() / (6 * N), L


@pytest.fixture(scope="module")
def refit(chinchilla: Points) -> Fit:
    return fit(*chinchilla)


def test_the_published_refit_of_chinchilla_is_reproduced(refit: Fit) -> None:
    found = refit
    assert found.points == 240
    assert found.converged
    assert pytest.approx(478, abs=0.5) == found.law.A
    assert pytest.approx(2143, abs=1) == found.law.B
    assert pytest.approx(1.817, abs=5e-4) == found.law.E
    assert found.law.alpha == pytest.approx(0.347, abs=5e-4)
    assert found.law.beta == pytest.approx(0.367, abs=5e-4)
    assert found.objective == pytest.approx(0.00101827, abs=1e-8)


def test_the_intervals_of_the_refit_are_as_wide_as_published(chinchilla: Points, refit: Fit) -> None:
    found = bootstrap(*chinchilla, refit, resamples=120)
    # Besiroglu et al. 2024, table 1: standard errors of E 0.03, α 0.02 and β 0.02; 95 % is four of them.
    for name, width in (("E", 0.12), ("alpha", 0.08), ("beta", 0.08)):
        assert 0.5 * width < found[name].high - found[name].low < 1.5 * width
    assert found["exponent"].low < 0.5 < found["exponent"].high  # parameters and tokens in equal measure


def test_a_fit_that_stopped_early_is_detected(chinchilla: Points) -> None:
    """Averaged losses with L-BFGS-B's default tolerance: it says CONVERGENCE, and α is wrong."""
    points = np.log(np.stack(chinchilla))
    scale = law.DELTA**2 / points.shape[1]

    def at(theta: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Of log E, as published, instead of E."""
        return np.array([*theta[:2], np.exp(theta[2]), *theta[3:]])

    def averaged(theta: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        value, gradient = law.objective(at(theta), points)
        return value * scale, gradient * np.array([1, 1, at(theta)[2], 1, 1]) * scale

    found = optimize.minimize(averaged, [5.0, 5.0, 0.0, 0.5, 0.5], jac=True, method="L-BFGS-B")
    assert found.success
    assert found.x[3] == pytest.approx(0.26, abs=0.01)
    promise = law.promise(at(found.x), points)
    assert promise > 1000 * law.CONVERGED
    assert not law.Fit(TRUTH, 0.0, promise, 240).converged


def test_the_gradient_is_that_of_the_objective() -> None:
    points = np.log(np.stack(simulated(0.01)))
    theta = np.array([5.9, 7.2, 0.5, 0.33, 0.36])
    numeric = optimize.approx_fprime(theta, lambda at: law.objective(at, points)[0], 1e-7)
    assert law.objective(theta, points)[1] == pytest.approx(numeric, rel=1e-3)


def test_a_law_without_noise_is_recovered() -> None:
    found = fit(*simulated(0.0))
    assert found.converged
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found.law, name) == pytest.approx(getattr(TRUTH, name), rel=1e-4)
    assert found.law.exponent == pytest.approx(0.37 / 0.72, rel=1e-4)


def test_points_that_show_no_floor_have_none_and_their_intervals_are_numbers() -> None:
    N, D, _ = simulated(0.0, sizes=4, budgets=4)
    floorless = Law(E=0.0, A=20.0, B=30.0, alpha=0.1, beta=0.15)
    L = floorless.loss(N, D) * np.exp(0.01 * np.random.default_rng(3).normal(size=N.size))
    found = fit(N, D, L)
    assert found.converged
    assert found.law.E < 1.0
    intervals = bootstrap(N, D, L, found, resamples=10)
    assert all(np.isfinite([each.low, each.high]).all() for each in intervals.values())
    assert intervals["alpha"].low < intervals["alpha"].high
    assert intervals["E"].high > 0.01  # a floor that is not seen can still be there


@pytest.mark.parametrize("name", ["gpt1", "llama"])
def test_no_estimate_lies_outside_its_interval(name: str) -> None:
    """The points of the reference ladder: gpt1's E, of 2e-4, had an interval up to 1e-4, and llama's, of 0, up to 0."""
    content = json.loads((REFERENCE / "scale.json").read_text())
    (finding,) = (one for one in content["findings"] if one["architecture"] == name)
    points = tuple(np.array([point[axis] for point in finding["points"]], dtype=float) for axis in ("N", "D", "loss"))
    start = finding["fitted"]
    found = law.Fit(Law(**start["law"]), start["objective"], start["promise"], start["points"])
    intervals = bootstrap(*points, found, resamples=6)
    for parameter, interval in intervals.items():
        estimate = getattr(found.law, parameter)
        assert interval.low is not None
        assert interval.low <= estimate
        assert interval.high is None or estimate <= interval.high, parameter
    assert intervals["E"].high is not None
    assert intervals["E"].high > 1e-3


def test_resamples_on_one_side_of_the_estimate_cannot_exclude_it(monkeypatch: pytest.MonkeyPatch) -> None:
    points = simulated(0.0, sizes=4, budgets=4)
    found = law.Fit(TRUTH, 0.0, 0.0, 16)
    for shift in (-0.1, 0.1):
        values = {parameter: np.full(9, getattr(TRUTH, parameter) + shift) for parameter in (*vars(TRUTH), "exponent")}
        monkeypatch.setattr(law, "resampled", lambda *_, values=values, **__: values)
        for parameter, interval in bootstrap(*points, found).items():
            assert interval.low is not None
            assert interval.high is not None
            assert interval.low <= getattr(TRUTH, parameter) <= interval.high


@pytest.mark.slow
def test_points_without_noise_that_show_no_floor_give_none() -> None:
    N, D, _ = simulated(0.0, sizes=4, budgets=4)
    floorless = Law(E=0.0, A=20.0, B=30.0, alpha=0.1, beta=0.15)
    exact = fit(N, D, floorless.loss(N, D))
    assert exact.converged
    assert exact.law.E < 1e-3
    assert exact.law.alpha == pytest.approx(0.1, rel=1e-3)


@pytest.mark.slow
def test_the_intervals_cover_the_truth_about_as_often_as_they_claim() -> None:
    held = dict.fromkeys(("E", "alpha", "beta", "exponent"), 0)
    repeats = 60
    for seed in range(repeats):
        points = simulated(0.005, seed)
        intervals = bootstrap(*points, fit(*points), resamples=200, seed=seed)
        for name in held:
            held[name] += intervals[name].low <= getattr(TRUTH, name) <= intervals[name].high
    # A percentile bootstrap is a little short; below 80 % of 60 it would be wrong, not short.
    assert all(0.8 * repeats <= times for times in held.values()), held


@pytest.mark.parametrize(
    ("losses", "message"),
    [([3.0, 2.9, 2.8, 2.7], "4 points"), ([3.0, 2.9, 2.8, 2.7, float("nan")], "not positive and finite")],
)
def test_points_that_cannot_be_fitted_are_refused(losses: list[float], message: str) -> None:
    sizes = np.geomspace(1e6, 1e8, len(losses))
    with pytest.raises(UsageError, match=message):
        fit(sizes, 20 * sizes, losses)
