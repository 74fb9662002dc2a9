"""The search for each architecture's learning rate: the same trials for all, and what becomes of their scores.

Short runs at the default times 1/4, 1/2, 1, 2 and 4, with two seeds each; what is chosen is the minimum of the parabola
in log learning rate through the best of them and its neighbours. Where the best lies at the edge, the search goes on
beyond it by at most two points.

These scores choose and do not count: the best of five equal runs looks 1.2 standard deviations better than it is, and
the best of five learning rates flatters likewise. Fresh seeds at the chosen rate are what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Times the default learning rate."""

TUNING_SEEDS = 2
"""Of each learning rate."""

MOST_ADDED = 2
"""Points beyond the first ones."""

_STEP = 2.0

K = TypeVar("K")
"""What has a learning rate: an architecture's name, say."""


@dataclass(frozen=True)
class Point:
    """One learning rate of the curve.

    Attributes:
        learning_rate: tried.
        factor: learning rate / default.
        bits_per_byte: of each tuning seed; infinity (or NaN) where it diverged. None where it failed otherwise, which
            says nothing about the learning rate.
        mean: over all seeds; None unless every one of them finished.
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
        learning_rate: None where no rate trained with every seed.
        flagged: the best rate tried lies at the edge: how good this architecture can be is not known.
        note: a clause, where there is more to say than the minimum of a parabola.
    """

    learning_rate: float | None
    flagged: bool
    note: str | None


@dataclass(frozen=True)
class Curve:
    """One architecture's search; the first three fields after its name are those of :class:`Choice`."""

    architecture: str
    learning_rate: float | None
    flagged: bool
    note: str | None
    points: tuple[Point, ...]

    def as_plain(self) -> dict[str, Any]:
        """As ``comparison.json`` has it. JSON knows no infinity: a seed that diverged is None, like one that failed."""
        plain = asdict(self)
        plain["points"] = [
            {**point, "bits_per_byte": [value if _is_finite(value) else None for value in point["bits_per_byte"]]}
            for point in plain["points"]
        ]
        return plain


def search(
    names: Sequence[K],
    factors: Sequence[float],
    measure: Callable[[Mapping[K, Sequence[float]]], None],
    points: Callable[[K], Sequence[Point]],
) -> None:
    """Try ``factors`` for all of ``names``, and what :func:`next_factor` adds to them, until it adds nothing.

    Args:
        measure: makes the runs of these names at these factors.
        points: what a name's runs came to so far.
    """
    asked = {name: list(factors) for name in names}
    while asked:
        measure(asked)
        further = {name: next_factor(points(name), factors) for name in asked}
        asked = {name: [factor] for name, factor in further.items() if factor is not None}


def curve(architecture: str, points: Sequence[Point], default: float, *, tuned: bool = True) -> Curve:
    """The whole search of one architecture, by ascending learning rate.

    Args:
        default: the learning rate of the recipe, which stands where nothing was searched for (``tuned`` False).
    """
    tried = tuple(sorted((point for point in points if point.bits_per_byte), key=lambda point: point.factor))
    if not tuned:
        return Curve(architecture, default, False, "not tuned: the recipe's own learning rate", tried)
    choice = choose(tried)
    return Curve(architecture, choice.learning_rate, choice.flagged, choice.note, tried)


def next_factor(points: Sequence[Point], factors: Sequence[float] = FACTORS) -> float | None:
    """The factor to try next, twice (or half) the outermost so far; None where the search is over.

    It goes on at the edge where the best point is. Where every point diverged, it goes on below.

    Args:
        points: of all ``factors``, and of what this added to them.
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

    The parabola goes through the best point and the one on either side of it. Where one of those did not finish, or the
    best point lies at the edge, it is the best point itself.
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
    """Index of the lowest mean; of equal ones the lower rate."""
    means = [(point.mean, index) for index, point in enumerate(points) if point.mean is not None]
    return min(means)[1] if means else None


def _edge(points: Sequence[Point]) -> Literal["upper", "lower"] | None:
    """Which side of the best point nothing bounds; None where both are, or there is no best one.

    A side is bounded by a point that finished, which is then worse; above also by one that diverged, since what is too
    high a rate stays too high. A divergence below is an accident, and bounds nothing.
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
    """Where the parabola in log learning rate through three points is lowest; ``at`` is not above the others."""
    assert below.mean is not None
    assert at.mean is not None
    assert above.mean is not None
    left, right = math.log(at.learning_rate / below.learning_rate), math.log(above.learning_rate / at.learning_rate)
    rise_left, rise_right = below.mean - at.mean, above.mean - at.mean
    curvature = rise_left * right + rise_right * left
    if not curvature:
        return at.learning_rate
    return at.learning_rate * math.exp((rise_left * right**2 - rise_right * left**2) / (2 * curvature))


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
