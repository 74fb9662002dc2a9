"""Repeats until the times are steady: warm-up kept apart, every sample kept, outliers counted.

Steady means: no trend. Mann and Kendall's test asks whether later samples tend to be larger or smaller than earlier
ones, whatever their distribution (Mann 1945, Econometrica 13:245; Kendall 1975, Rank Correlation Methods). With many
samples it finds drifts too small to matter, so a trend counts only if Theil and Sen's estimate of the change over the
window (Sen 1968, JASA 63:1379) is more than 1 % of the median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from archbench.measure.clock import Clock, seconds_of

WINDOW = 8
"""Fewest samples that the test looks at: with fewer it could hardly ever find a trend."""

WARMUP_LEVEL = 0.05
"""False-alarm rate of the test that ends the warm-up: a false alarm costs only one more call."""

FLAG_LEVEL = 0.01
"""False-alarm rate of the test behind :attr:`Samples.stationary`."""

SMALLEST_CHANGE = 0.01
"""Changes over the window that are smaller, relative to the median, are ignored."""

_MOST_BLOCKS = 256


@dataclass(frozen=True)
class Samples:
    """What :func:`repeat_until_steady` measured.

    Attributes:
        seconds: every timed repeat, in order, none dropped.
        warmup_seconds: every call before them.
        stationary: whether the warm-up ended with steady times and the samples have no trend.
        outliers: how many of ``seconds`` lie outside Tukey's fences.
    """

    seconds: list[float]
    warmup_seconds: list[float]
    stationary: bool
    outliers: int

    @property
    def calls(self) -> int:
        """Warm-up and timed repeats together."""
        return len(self.warmup_seconds) + len(self.seconds)

    @property
    def median(self) -> float:
        """Median of ``seconds``."""
        return float(np.median(self.seconds))


def repeat_until_steady(
    fn: Callable[[], object], clock: Clock, *, warmup: int, repeats: int, max_warmup: int = 50
) -> Samples:
    """Call ``fn`` until its times are steady, then ``repeats`` times more, each timed on its own.

    Warm-up is at least ``warmup`` calls and at least :data:`WINDOW`, if ``max_warmup`` allows, and continues while the
    last :data:`WINDOW` times have a trend. The samples that are kept take no part in this decision, so nothing is
    selected.

    Args:
        fn: the work; its result is discarded.
        clock: of the device that does the work.
        warmup: fewest warm-up calls.
        repeats: timed calls.
        max_warmup: most warm-up calls.
    """
    assert repeats > 0
    assert 0 <= warmup <= max_warmup
    warmup_seconds = [seconds_of(fn, clock) for _ in range(min(max(warmup, WINDOW), max_warmup))]
    while has_trend(warmup_seconds[-WINDOW:], WARMUP_LEVEL) and len(warmup_seconds) < max_warmup:
        warmup_seconds.append(seconds_of(fn, clock))
    steady = len(warmup_seconds) >= WINDOW and not has_trend(warmup_seconds[-WINDOW:], WARMUP_LEVEL)
    seconds = [seconds_of(fn, clock) for _ in range(repeats)]
    # Few repeats are joined to the end of the warm-up, or the test could find nothing.
    joined = [*warmup_seconds[len(warmup_seconds) - max(0, WINDOW - repeats) :], *seconds]
    return Samples(seconds, warmup_seconds, steady and not has_trend(joined, FLAG_LEVEL), count_outliers(seconds))


def has_trend(seconds: Sequence[float], level: float = FLAG_LEVEL) -> bool:
    """Whether times rise or fall along the sequence, by more than chance and by more than 1 %.

    Two-sided Mann–Kendall test in its normal approximation, corrected for continuity and ties (scipy's ``kendalltau``
    has no such correction, and takes half a second to import). More than 256 samples are first reduced to the medians
    of 256 blocks, which also weakens the correlation of neighbours. Fewer than four samples never have a trend.

    Args:
        seconds: samples in order.
        level: false-alarm rate.
    """
    x = np.asarray(seconds, dtype=np.float64)  # (n,)
    if len(x) > _MOST_BLOCKS:
        x = np.array([np.median(block) for block in np.array_split(x, _MOST_BLOCKS)])
    n = len(x)
    if n < 4:
        return False
    earlier, later = np.triu_indices(n, k=1)
    differences = x[later] - x[earlier]  # (n(n-1)/2,)
    statistic = float(np.sign(differences).sum())
    ties = np.unique(x, return_counts=True)[1].astype(np.float64)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return False
    z = max(abs(statistic) - 1, 0) / math.sqrt(variance)
    p = math.erfc(z / math.sqrt(2))
    change = abs(float(np.median(differences / (later - earlier)))) * (n - 1)
    return p < level and change > SMALLEST_CHANGE * float(np.median(x))


def count_outliers(seconds: Sequence[float]) -> int:
    """Samples outside Tukey's fences, 1.5 interquartile ranges beyond the quartiles (Tukey 1977)."""
    x = np.asarray(seconds, dtype=np.float64)
    if len(x) < 4:
        return 0
    low, high = np.quantile(x, [0.25, 0.75])
    reach = 1.5 * (high - low)
    return int(((x < low - reach) | (x > high + reach)).sum())
