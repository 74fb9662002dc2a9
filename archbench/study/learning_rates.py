"""The choice of each architecture's learning rate from trials, which are the same for all.

Short runs at the recipe's rate times 1/4, 1/2, 1, 2 and 4, with two seeds each. The choice is the minimum of the
parabola in log learning rate through the best of them and its neighbours. If the best lies at the edge, the search goes
on beyond it by at most two points.

These scores choose and are not compared: reporting only the best of five equal runs makes it look 1.2 standard
deviations better than it is, and so does the best of five learning rates. Fresh seeds at the chosen rate are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from archbench.study.outcome import Finite, Part

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the recipe's learning rate."""

TUNING_SEEDS = 2
"""For each learning rate."""

MOST_ADDED = 2
"""Most points beyond the first ones."""

_STEP = 2.0


@dataclass(frozen=True)
class Point:
    """One learning rate of the curve.

    Attributes:
        factor: learning rate / the recipe's.
        bits_per_byte: of each tuning seed; infinity (or NaN) if it diverged. None if it failed otherwise, which says
            nothing about the learning rate.
        mean: over all seeds; None unless all of them finished.
    """

    learning_rate: float
    factor: float
    bits_per_byte: tuple[float | None, ...]
    mean: float | None = field(init=False)

    def __post_init__(self) -> None:
        finite = [value for value in self.bits_per_byte if value is not None and math.isfinite(value)]
        mean = math.fsum(finite) / len(finite) if finite and len(finite) == len(self.bits_per_byte) else None
        object.__setattr__(self, "mean", mean)

    @property
    def diverged(self) -> bool:
        """Whether any seed did."""
        return any(value is not None and not math.isfinite(value) for value in self.bits_per_byte)


@dataclass(frozen=True)
class Choice:
    """What the search found.

    Attributes:
        learning_rate: None if no rate trained with every seed.
        flagged: the best rate tried lies at the edge: how good this architecture can be is not known.
        note: a clause, if there is more to say than the minimum of a parabola.
    """

    learning_rate: float | None
    flagged: bool
    note: str | None


class TuningPoint(Part):
    """A :class:`Point` as outcomes have it: a seed that diverged is null, like one that failed."""

    learning_rate: float
    factor: float
    bits_per_byte: list[Finite]
    mean: float | None


class Tuning(Part):
    """One architecture's search; the first three fields after its name are those of :class:`Choice`."""

    architecture: str
    learning_rate: float | None
    flagged: bool
    note: str | None
    points: list[TuningPoint]


def tuning(architecture: str, points: Sequence[Point], default: float, *, tuned: bool = True) -> Tuning:
    """The whole search of one architecture, by ascending learning rate.

    Args:
        default: the recipe's learning rate, which is used if there was no search (``tuned`` False).
    """
    tried = sorted((point for point in points if point.bits_per_byte), key=lambda point: point.factor)
    choice = choose(tried) if tuned else Choice(default, False, "not tuned: the recipe's own learning rate")
    return Tuning(
        architecture=architecture,
        learning_rate=choice.learning_rate,
        flagged=choice.flagged,
        note=choice.note,
        points=[
            TuningPoint(
                learning_rate=point.learning_rate,
                factor=point.factor,
                bits_per_byte=list(point.bits_per_byte),
                mean=point.mean,
            )
            for point in tried
        ],
    )


def next_factor(points: Sequence[Point], factors: Sequence[float] = FACTORS) -> float | None:
    """The factor to try next, twice (or half) the outermost so far; None if the search is over.

    The search goes on at the edge where the best point is. If every point diverged, it goes on below.

    Args:
        points: of all ``factors``, and of those that this function added.
        factors: the first ones, at least two.
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

    It is the minimum of the parabola through the best point and the one on either side of it; or the best point itself,
    if one of those did not finish or the best point lies at the edge.
    """
    points = sorted(points, key=lambda point: point.factor)
    best = _best(points)
    if best is None:
        return Choice(None, False, _why_none(points))
    at = points[best]
    edge = _edge(points)
    if edge is not None:
        return Choice(at.learning_rate, True, f"the best rate tried is the {edge} edge of the search")
    below, above = points[best - 1], points[best + 1]  # there are both, or it would be an edge
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
    """Index of the lowest mean; of equal ones, the lower rate."""
    means = [(point.mean, index) for index, point in enumerate(points) if point.mean is not None]
    return min(means)[1] if means else None


def _edge(points: Sequence[Point]) -> Literal["upper", "lower"] | None:
    """Which side of the best point nothing bounds; None if both are bounded, or there is no best point.

    A side is bounded by a point that finished, and so is worse. A point above that diverged also bounds: a rate that is
    too high stays too high. A divergence below is an accident, and bounds nothing.
    """
    best = _best(points)
    if best is None:
        return None
    if all(point.mean is None and not point.diverged for point in points[best + 1 :]):
        return "upper"
    if all(point.mean is None for point in points[:best]):
        return "lower"
    return None


def _why_none(points: Sequence[Point]) -> str:
    if all(point.diverged for point in points):
        return "with every learning rate tried a seed diverged"
    return "with no learning rate did every seed finish"


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
