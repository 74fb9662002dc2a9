"""The choice of each architecture's learning rate from trials that are the same for all.

Trials are short runs at the recipe's rate times 1/4, 1/2, 1, 2 and 4, with two seeds each. The choice is the minimum of
the parabola in log learning rate through the best trial and its neighbours. If the best lies at the edge, the search
extends by at most two points.

These scores choose and are not compared: reporting only the best of five equal runs makes it look 1.2 standard
deviations better than it is, and the best of five learning rates is no different. The comparison uses fresh seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from archbench.study.outcome import Finite, Part

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Learning rates tried first, as multiples of the recipe's."""

TUNING_SEEDS = 2
"""Seeds at each learning rate."""

MOST_ADDED = 2
"""Most learning rates added to the first ones."""

_STEP = 2.0


@dataclass(frozen=True)
class Point:
    """One learning rate of the curve.

    Attributes:
        factor: learning rate / the recipe's.
        bits_per_byte: of each tuning seed; infinity (or NaN) if it diverged. None if it failed otherwise, which says
            nothing about the learning rate.
    """

    learning_rate: float
    factor: float
    bits_per_byte: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Over all seeds; None unless all finished."""
        finite = [value for value in self.bits_per_byte if value is not None and math.isfinite(value)]
        return math.fsum(finite) / len(finite) if finite and len(finite) == len(self.bits_per_byte) else None

    @property
    def diverged(self) -> bool:
        """Whether any seed diverged."""
        return any(value is not None and not math.isfinite(value) for value in self.bits_per_byte)


@dataclass(frozen=True)
class Choice:
    """The result of a search.

    Attributes:
        learning_rate: None if every rate lost a seed.
        flagged: whether the best rate lies at the edge, so that the architecture's best is unknown.
        note: a clause, unless the choice is the minimum of a parabola.
    """

    learning_rate: float | None
    flagged: bool
    note: str | None


class TuningPoint(Part):
    """A :class:`Point` in an outcome: null for a seed that diverged or failed."""

    learning_rate: float
    factor: float
    bits_per_byte: list[Finite]
    mean: float | None


class Tuning(Part):
    """The search of one architecture: its :class:`Choice`, and the points tried."""

    architecture: str
    learning_rate: float | None
    flagged: bool
    note: str | None
    points: list[TuningPoint]


def tuning(architecture: str, points: Sequence[Point], default: float, *, tuned: bool = True) -> Tuning:
    """The whole search of one architecture, its points in order of learning rate.

    Args:
        default: the recipe's learning rate; it is chosen if there was no search (``tuned`` False).
    """
    tried = sorted((point for point in points if point.bits_per_byte), key=lambda point: point.factor)
    choice = choose(tried) if tuned else Choice(default, False, "not tuned: the recipe's own learning rate")
    return Tuning.of(choice, architecture=architecture, points=[TuningPoint.of(point) for point in tried])


def next_factor(points: Sequence[Point], factors: Sequence[float] = FACTORS) -> float | None:
    """The factor to try next, twice (or half) the outermost one; None if the search is over.

    The search extends at the edge where the best point lies. If every point diverged, it extends downwards.

    Args:
        points: at all ``factors``, and at those that this function added.
        factors: tried first; at least two.
    """
    points = sorted(points, key=lambda point: point.factor)
    tried = [point.factor for point in points]
    assert len(factors) > 1
    assert set(tried) >= set(factors)
    if len(tried) >= len(factors) + MOST_ADDED:
        return None
    edge = _edge(points)
    if edge == "upper":
        return tried[-1] * _STEP
    if edge == "lower" or all(point.diverged for point in points):
        return tried[0] / _STEP
    return None


def choose(points: Sequence[Point]) -> Choice:
    """The learning rate to confirm with fresh seeds.

    It is the minimum of the parabola through the best point and its two neighbours, or the best point itself if it lies
    at the edge or a neighbour did not finish.
    """
    points = sorted(points, key=lambda point: point.factor)
    best = _best(points)
    if best is None:
        what = "with no learning rate did every seed finish"
        if all(point.diverged for point in points):
            what = "with every learning rate tried a seed diverged"
        return Choice(None, False, what)
    at = points[best]
    edge = _edge(points)
    if edge is not None:
        return Choice(at.learning_rate, True, f"the best rate tried is the {edge} edge of the search")
    below, above = points[best - 1], points[best + 1]  # both exist, or the best point would be an edge
    if above.diverged:
        note = f"the best rate tried, bounded above by a divergence at {above.learning_rate:.3g}"
        return Choice(at.learning_rate, False, note)
    for neighbour in (below, above):
        if neighbour.mean is None:
            what = "diverged" if neighbour.diverged else "failed"
            note = f"the best rate tried, since its neighbour {neighbour.learning_rate:.3g} {what}"
            return Choice(at.learning_rate, False, note)
    return Choice(_vertex(below, at, above), False, None)


def _best(points: Sequence[Point]) -> int | None:
    """Index of the lowest mean; of equal means, the lower rate."""
    means = [(point.mean, index) for index, point in enumerate(points) if point.mean is not None]
    return min(means)[1] if means else None


def _edge(points: Sequence[Point]) -> Literal["upper", "lower"] | None:
    """The unbounded side of the best point; None if both sides are bounded, or there is no best point.

    A finished point, which is worse, bounds its side. So does a divergence above, because higher rates diverge too. A
    divergence below is an accident and bounds nothing.
    """
    best = _best(points)
    if best is None:
        return None
    if all(point.mean is None and not point.diverged for point in points[best + 1 :]):
        return "upper"
    if all(point.mean is None for point in points[:best]):
        return "lower"
    return None


def _vertex(below: Point, at: Point, above: Point) -> float:
    """The minimum of the parabola in log learning rate through three points; ``at`` is not above the others."""
    assert below.mean is not None
    assert at.mean is not None
    assert above.mean is not None
    left, right = math.log(at.learning_rate / below.learning_rate), math.log(above.learning_rate / at.learning_rate)
    rise_left, rise_right = below.mean - at.mean, above.mean - at.mean
    curvature = rise_left * right + rise_right * left
    if not curvature:
        return at.learning_rate
    return at.learning_rate * math.exp((rise_left * right**2 - rise_right * left**2) / (2 * curvature))
