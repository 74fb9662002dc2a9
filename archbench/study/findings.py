"""What a ladder shows about an architecture: a law and how well it predicts the largest size, or why there is no law.

Fewer than twelve points are not fitted. A law is tested on the largest size, which is held out, beside the simplest
forecast: that the loss stays the same. Exponents are compared from forty points on.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic

from archbench.study import law
from archbench.study.law import Fit, Law
from archbench.study.outcome import Interval

FEWEST_POINTS = 12
FEWEST_SIZES = 4
"""Three are left when the largest is held out; with two, E + A/N^α fits as well as a straight line."""

FEWEST_BUDGETS = 3
FEWEST_TO_RANK = 40
RANKING_RESAMPLES = 2000
"""More than for intervals: the Bonferroni correction moves the percentiles further out."""

LEVEL = 0.05
SHOWN = 1e-4
"""Smallest share of the loss that each term of the law must reach at some point."""


@pydantic.dataclasses.dataclass(frozen=True)
class Point:
    """One architecture at one size, trained on one budget.

    Attributes:
        size, budget: the requested N and D.
        N: non-embedding active parameters.
        D: training tokens seen.
        flops: of training, forward and backward.
        losses: nats per token of the validation text, for each finished seed.
        learning_rate: the peak.
        epochs: D / tokens of the training text; above 1, tokens repeat.
    """

    size: int
    budget: int
    N: int
    D: int
    flops: float
    losses: tuple[float, ...]
    learning_rate: float
    epochs: float

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def loss(self) -> float:
        """Mean over seeds, in nats per token."""
        return statistics.fmean(self.losses)


@dataclass(frozen=True)
class Forecast:
    """A point of the largest size and its prediction, in nats per token.

    Attributes:
        predicted: by the law of the smaller sizes.
        error: predicted / measured - 1.
        unchanged: the error of taking the next smaller size's loss at that budget; None if it was not measured.
    """

    size: int
    D: int
    measured: float
    predicted: float
    error: float
    unchanged: float | None


@dataclass(frozen=True)
class HeldOut:
    """The test of a law: the largest size, predicted from the smaller sizes.

    Attributes:
        fitted: the law of the smaller sizes.
        forecasts: one for each budget.
        error: mean absolute relative error of the forecasts; ``worst`` is the largest.
        unchanged: the mean for taking the next smaller size's losses; None if one of them is missing.
    """

    fitted: Fit
    forecasts: tuple[Forecast, ...]
    error: float
    unchanged: float | None

    @property
    def worst(self) -> float:
        return max(abs(one.error) for one in self.forecasts)


@dataclass(frozen=True)
class Finding:
    """The finding about one architecture.

    Attributes:
        points: in order of size and budget.
        fitted: the law of all points; None without a law.
        intervals: 95 %, of each parameter and of ``exponent``; empty without a law.
        held_out: the test of the law; None without a test.
        reason: why there is no law, or no test of it; None otherwise.
    """

    architecture: str
    points: tuple[Point, ...]
    fitted: Fit | None
    intervals: dict[str, Interval]
    held_out: HeldOut | None
    reason: str | None


@dataclass(frozen=True)
class Ranking:
    """One exponent of an architecture, compared with the first architecture's.

    Attributes:
        exponent: alpha (parameters) or beta (tokens).
        difference: minus the first architecture's.
        low, high: interval of the difference, Bonferroni-corrected.
        verdict: larger (loss falls faster), smaller, or not told apart.
    """

    architecture: str
    exponent: str
    difference: float
    low: float
    high: float
    verdict: Literal["larger", "smaller", "not told apart"]


def find(architecture: str, points: Sequence[Point]) -> Finding:
    """Fit and test a law, as far as the points of the architecture allow."""
    ordered = tuple(sorted(points, key=lambda point: (point.size, point.budget)))
    if (reason := _too_few(ordered)) is not None:
        return Finding(architecture, ordered, None, {}, None, reason)
    fitted = law.fit(*_columns(ordered))
    if (reason := _no_law(fitted, ordered)) is not None:
        return Finding(architecture, ordered, None, {}, None, reason)
    intervals = law.bootstrap(*_columns(ordered), fitted)
    held_out = _hold_out(ordered)
    reason = held_out if isinstance(held_out, str) else None
    test = None if isinstance(held_out, str) else held_out
    return Finding(architecture, ordered, fitted, intervals, test, reason)


def rank(findings: Sequence[Finding]) -> tuple[list[Ranking], str | None]:
    """Compare each architecture's exponents with the first one's. Returns no comparison and the reason if it cannot.

    The points are resampled 2,000 times; the intervals are percentiles of the differences, at 95 % for all comparisons
    together.
    """
    if len(findings) < 2:
        return [], None
    for finding in findings:
        if finding.fitted is None:
            return [], f"exponents are not compared: {finding.architecture} has no law"
    fewest = min(findings, key=lambda finding: len(finding.points))
    if len(fewest.points) < FEWEST_TO_RANK:
        few = f"{fewest.architecture} has {len(fewest.points)} points, and {FEWEST_TO_RANK} are needed"
        return [], f"exponents are not compared: {few}"
    first, *others = findings
    samples = {one.architecture: _samples(one, seed) for seed, one in enumerate(findings)}
    tail = 100 * LEVEL / 2 / (2 * len(others))
    ranking = []
    for other in others:
        for name in ("alpha", "beta"):
            differences = samples[other.architecture][name] - samples[first.architecture][name]
            low, high = (float(edge) for edge in np.percentile(differences, [tail, 100 - tail]))
            verdict: Literal["larger", "smaller", "not told apart"] = "not told apart"
            if low > 0 or high < 0:
                verdict = "larger" if low > 0 else "smaller"
            difference = _law(other)[name] - _law(first)[name]
            ranking.append(Ranking(other.architecture, name, difference, low, high, verdict))
    return ranking, None


def _law(finding: Finding) -> dict[str, float]:
    assert finding.fitted is not None
    return vars(finding.fitted.law)


def _samples(finding: Finding, seed: int) -> dict[str, law.Floats]:
    assert finding.fitted is not None
    return law.resampled(*_columns(finding.points), finding.fitted, resamples=RANKING_RESAMPLES, seed=seed)


def _columns(points: Sequence[Point]) -> tuple[list[int], list[int], list[float]]:
    return [point.N for point in points], [point.D for point in points], [point.loss for point in points]


def _too_few(points: Sequence[Point]) -> str | None:
    """Why these points are too few for a fit; None if they suffice."""
    if len(points) < FEWEST_POINTS:
        return f"{len(points)} points are drawn and not fitted: a law takes {FEWEST_POINTS} or more"
    sizes, budgets = ({getattr(point, name) for point in points} for name in ("size", "budget"))
    for count, fewest, what in ((len(sizes), FEWEST_SIZES, "sizes"), (len(budgets), FEWEST_BUDGETS, "budgets")):
        if count < fewest:
            return f"the points have {count} {what}, and a law takes {fewest} or more"
    return None


def _no_law(fitted: Fit, points: Sequence[Point]) -> str | None:
    """Why the fit is not a law; None if it is."""
    found = fitted.law
    parts = (
        ("parameters", found.alpha, [found.A * point.N**-found.alpha / point.loss for point in points]),
        ("tokens", found.beta, [found.B * point.D**-found.beta / point.loss for point in points]),
    )
    for what, exponent, shares in parts:
        if exponent <= 0 or max(shares) < SHOWN:
            return f"the points do not show that loss falls with {what}"
    if not fitted.converged:
        return f"the fit did not converge: a further step promises {fitted.promise:.1%} of its objective"
    return None


def _hold_out(points: Sequence[Point]) -> HeldOut | str:
    """Fit the smaller sizes and predict the largest; or why there is no test."""
    largest = max(point.size for point in points)
    seen = [point for point in points if point.size < largest]
    fitted = law.fit(*_columns(seen))
    if (reason := _no_law(fitted, seen)) is not None:
        return f"the law could not be tested on the largest size: without it, {reason}"
    before = max(point.size for point in seen)
    known = {point.budget: point.loss for point in seen if point.size == before}
    forecasts = tuple(_forecast(point, fitted.law, known) for point in points if point.size == largest)
    errors = [abs(one.error) for one in forecasts]
    plain = [abs(one.unchanged) for one in forecasts if one.unchanged is not None]
    unchanged = statistics.fmean(plain) if len(plain) == len(errors) else None
    return HeldOut(fitted, forecasts, statistics.fmean(errors), unchanged)


def _forecast(point: Point, found: Law, known: dict[int, float]) -> Forecast:
    predicted = float(found.loss(point.N, point.D))
    before = known.get(point.budget)
    unchanged = None if before is None else before / point.loss - 1
    return Forecast(point.size, point.D, point.loss, predicted, predicted / point.loss - 1, unchanged)
