"""From samples to a ratio with its 95 % bounds: CPU times beside a reference, in logarithms, a process at a time.

What varies from one process to the next (where memory happens to lie, what else the machine does meanwhile) does not
average out within a process, however many samples it takes: so the process, or the pair of processes that took turns,
is the unit, and Student's interval over units is the interval (Kalibera and Jones 2013, Rigorous benchmarking in
reasonable time, section 5). A bootstrap over so few units would be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
"""Of each bound on its own."""

TRIMMED = 0.2
"""Share of the samples left out at either end: those in which somebody else had the caches, or the reference's."""


@dataclass(frozen=True)
class Estimate:
    """Head / base.

    Attributes:
        ratio: of the times.
        low, high: 95 % bounds, each one-sided: the true ratio is below ``low`` in 5 % of the cases. 0 and infinity
            where there are too few units to say.
        units: pairs of processes, or processes of the side with fewer.
    """

    ratio: float
    low: float
    high: float
    units: int


def level(samples: Sequence[tuple[float, float]] | npt.NDArray[np.floating]) -> float:
    """Logarithm of work / reference in one process: the mean over the middle three fifths of its samples.

    Args:
        samples: seconds of the reference, and of the work right after it.
    """
    reference, work = np.asarray(samples, dtype=np.float64).T
    ordered = np.sort(np.log(work / reference))
    cut = int(TRIMMED * len(ordered))
    return float(ordered[cut : len(ordered) - cut].mean())


def paired(base: Sequence[float], head: Sequence[float]) -> Estimate:
    """From levels of processes that took turns two by two: Student's interval of their differences."""
    differences = np.asarray(head, dtype=np.float64) - np.asarray(base, dtype=np.float64)  # (pairs,)
    n = len(differences)
    spread = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return _estimate(float(differences.mean()), spread, n - 1, n)


def unpaired(base: Sequence[float], head: Sequence[float]) -> Estimate:
    """From levels of processes that ran at different times: Student's two-sample interval, equal variances.

    The two sides run the same kind of work on one machine, and there are too few of them to tell their variances apart.
    """
    b, h = np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)
    freedom = len(b) + len(h) - 2
    spread = math.inf
    if freedom > 0:
        pooled = (((b - b.mean()) ** 2).sum() + ((h - h.mean()) ** 2).sum()) / freedom
        spread = math.sqrt(float(pooled) * (1 / len(b) + 1 / len(h)))
    return _estimate(float(h.mean() - b.mean()), spread, freedom, min(len(b), len(h)))


def _estimate(difference: float, spread: float, freedom: int, units: int) -> Estimate:
    if math.isinf(spread):
        return Estimate(math.exp(difference), 0.0, math.inf, units)
    reach = student_quantile(CONFIDENCE, freedom) * spread
    return Estimate(math.exp(difference), math.exp(difference - reach), math.exp(difference + reach), units)


def student_quantile(p: float, freedom: int) -> float:
    """The value that Student's t is below with probability ``p``, 0.5 <= p < 1, by bisection."""
    assert 0.5 <= p < 1
    assert freedom >= 1
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_probability(middle, freedom) < p else (low, middle)
    return high


def student_probability(t: float, freedom: int) -> float:
    """P(Student's t with ``freedom`` degrees of freedom <= t): Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle) ** 2
    if freedom % 2:  # both series: each term is the one before it times an even, then odd, factor
        term, total = math.cos(angle), math.cos(angle) if freedom > 1 else 0.0
        for k in range(3, freedom - 1, 2):
            term *= cosine * (k - 1) / k
            total += term
        within = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term = total = 1.0
        for k in range(2, freedom - 1, 2):
            term *= cosine * (k - 1) / k
            total += term
        within = math.sin(angle) * total
    return 0.5 + within / 2
