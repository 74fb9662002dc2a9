"""Ratios with 95 % bounds, from CPU times beside a reference; a process is the unit, and logarithms are averaged.

What varies between processes (where memory lies, what else the machine does) does not average out within one, however
many samples it takes. So the process, or the pair of processes that took turns, is the unit, and the interval is
Student's over units (Kalibera and Jones 2013, Rigorous benchmarking in reasonable time, section 5). A bootstrap over so
few units would be too narrow.
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
"""Share of the samples left out at either end: those in which another process had the caches."""


@dataclass(frozen=True)
class Estimate:
    """Head / base.

    Attributes:
        ratio: of the times.
        low, high: one-sided 95 % bounds: the true ratio is below ``low`` in 5 % of the cases. 0 and infinity where
            there are too few units.
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

    The two sides do the same kind of work on one machine, and are too few to estimate a variance each.
    """
    b, h = np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)
    freedom = len(b) + len(h) - 2
    spread = math.inf
    if freedom > 0:
        pooled = float(len(b) * b.var() + len(h) * h.var()) / freedom
        spread = math.sqrt(pooled * (1 / len(b) + 1 / len(h)))
    return _estimate(float(h.mean() - b.mean()), spread, freedom, min(len(b), len(h)))


def _estimate(difference: float, spread: float, freedom: int, units: int) -> Estimate:
    if math.isinf(spread):
        return Estimate(math.exp(difference), 0.0, math.inf, units)
    from scipy.stats import t  # here, because it takes half a second to import, and measuring processes do not need it

    reach = float(t.ppf(CONFIDENCE, freedom)) * spread
    return Estimate(math.exp(difference), math.exp(difference - reach), math.exp(difference + reach), units)
