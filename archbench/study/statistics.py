"""Uncertainty of a difference: from the seeds, from the text, and from both.

Differences are logarithms of ratios, log(A / B): swapping A and B changes only their sign, and near zero they equal the
relative difference (``expm1`` gives it exactly).

- Seeds are few, so the intervals are Student's and Welch's. A percentile bootstrap over three to five seeds covers
  81 to 89 % where it claims 95.
- Documents are many and of unequal length, and both models read the same ones, so the ratio of sums has a paired
  bootstrap (Koehn 2004, Statistical significance tests for machine translation evaluation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

Values = Sequence[float] | npt.NDArray[np.float64]

RESAMPLES = 2_000
"""Resamples of a bootstrap; its standard error then has an error of 1.6 %."""

MOST_SEEDS = 1_000
"""Most seeds of each architecture in the search for the number that would decide."""

_COUNTS_AT_ONCE = 1 << 22
"""Size of a block of resampling counts: 32 MiB."""


@dataclass(frozen=True)
class Estimate:
    """A value with its error: (estimate - truth) / standard error follows Student's t.

    Attributes:
        standard_error: infinite if there are too few observations.
        freedom: degrees of freedom; may be fractional.
    """

    value: float
    standard_error: float
    freedom: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided interval; minus to plus infinity if the standard error is infinite."""
        if not self.standard_error:
            return self.value, self.value
        if math.isinf(self.standard_error):
            return -math.inf, math.inf
        reach = float(special.stdtrit(self.freedom, (1 + confidence) / 2)) * self.standard_error
        return self.value - reach, self.value + reach

    @property
    def p(self) -> float:
        """Two-sided p-value of the hypothesis that the truth is 0. Without any spread: 1 for a value of 0, else 0."""
        if not self.standard_error:
            return 1.0 if not self.value else 0.0
        if math.isinf(self.standard_error):
            return 1.0
        return float(2 * special.stdtr(self.freedom, -abs(self.value) / self.standard_error))


def welch(a: Values, b: Values) -> Estimate:
    """mean(a) - mean(b) of independent samples whose variances may differ.

    Source: Welch 1947, The generalization of "Student's" problem; freedom by Welch and Satterthwaite. The same as
    ``scipy.stats.ttest_ind(a, b, equal_var=False)``, but two samples without spread give no NaN (:attr:`Estimate.p`);
    one observation on either side gives an infinite standard error.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    parts = [mean(a), mean(b)]
    return _sum_of_variances(parts[0].value - parts[1].value, parts)


def seed_part(a: Values, b: Values) -> Estimate:
    """log(mean(a) / mean(b)) with the uncertainty from seeds: Welch's, each side relative to its own mean.

    Unlike Welch's interval divided by the baseline's mean, this relative form (delta method) counts the baseline's
    spread also when the means are far apart. Near equality both agree.

    Args:
        a, b: bits per byte, one per seed; their means are above zero.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.mean() > 0
    assert b.mean() > 0
    return replace(welch(a / a.mean(), b / b.mean()), value=math.log(a.mean() / b.mean()))


def paired_bootstrap(nats_a: Values, nats_b: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """log(sum(a) / sum(b)) with the uncertainty from the choice of the text.

    Units (documents, or blocks of text) are drawn with replacement, the same for both models. Percentiles are too
    narrow for few units (90 % instead of 95 at 10 units; Hesterberg 2015, What teachers should know about the
    bootstrap), so the interval is Student's with n - 1 degrees of freedom and the bootstrap's standard error times
    sqrt(n / (n - 1)). Long documents weigh more than short ones, so n is the effective number of units, (sum w)² / sum
    w² with w their nats (Kish 1965, Survey sampling). Simulated coverage is 93 to 98 % with 10, 30 and 100 units, of
    equal lengths to log-normal ones of sigma 1.5. ``scipy.stats.bootstrap`` has neither correction.

    Args:
        nats_a, nats_b: (units,) nats of the same units, averaged over seeds. Units without nats have no effect.
        seed: of the resampling. Comparisons over equally many units share their resamples.

    Returns:
        An infinite standard error if fewer than two units, or a resample, have any nats.
    """
    a, b = np.asarray(nats_a, dtype=np.float64), np.asarray(nats_b, dtype=np.float64)
    assert a.shape == b.shape
    kept = (a != 0) | (b != 0)
    a, b = a[kept], b[kept]
    total_a, total_b = float(a.sum()), float(b.sum())
    assert total_a > 0
    assert total_b > 0
    value = math.log(total_a / total_b)
    if len(a) < 2:
        return Estimate(value, math.inf, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = _resampled_sums(np.stack([a, b], axis=1), resamples, seed)  # (resamples, 2)
        spread = float(np.log(sums[:, 0] / sums[:, 1]).std(ddof=1))
    weights = a + b
    units = float(weights.sum() ** 2 / (weights**2).sum())
    if not math.isfinite(spread) or units <= 1:
        return Estimate(value, math.inf, 1.0)
    return Estimate(value, spread * math.sqrt(units / (units - 1)), units - 1)


def combined(seeds: Estimate, documents: Estimate) -> Estimate:
    """The seeds' estimate with the uncertainty of both: variances added, freedom by Welch and Satterthwaite.

    Both parts contain the effect of a seed on a single document, so the interval is a little too wide, less so with
    more documents. (Cameron, Gelbach and Miller 2011, Robust inference with multiway clustering, subtract that third
    term; estimated from so few seeds it could make the variance negative.)
    """
    return _sum_of_variances(seeds.value, [seeds, documents])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order: rejecting those below alpha makes any false claim with probability alpha.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure. The same as statsmodels'
    ``multipletests``, whose package has 65 MB and takes 2 s to import.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return [float(value) for value in adjusted]


def seeds_needed(
    difference: float,
    spreads: tuple[float, float],
    documents: Estimate,
    *,
    present: int,
    margin: float,
    confidence: float,
    tests: int = 1,
    power: float = 0.8,
) -> int | None:
    """Fewest seeds of each architecture, beyond the present ones, with which the rule would decide.

    Significant and equivalent are decisions. The present difference and spreads are taken as true, the mean over new
    seeds varies around the difference, and the rule must decide with probability ``power``. More seeds do not narrow
    the part of the documents.

    Args:
        difference: log of the ratio to the baseline.
        spreads: standard deviation over seeds of each side, relative to its mean.
        documents: from :func:`paired_bootstrap`.
        present: seeds of each architecture now.
        margin: smallest relative difference that counts.
        tests: hypotheses not yet rejected when Holm's procedure reaches this one.

    Returns:
        None if :data:`MOST_SEEDS` do not decide, because the text alone is too small.
    """
    n = np.arange(max(present + 1, 2), MOST_SEEDS + 1)
    if not len(n) or math.isinf(documents.standard_error):
        return None
    a, b = spreads[0] ** 2 / n, spreads[1] ** 2 / n
    text = documents.standard_error**2
    variance = a + b + text
    if not variance.all():
        return int(n[0])
    freedom = variance**2 / ((a**2 + b**2) / (n - 1) + text**2 / documents.freedom)
    error = np.sqrt(variance)
    alpha = 1 - confidence
    beyond = special.stdtrit(freedom, 1 - alpha / 2 / tests) * error  # significant from here on
    within = special.stdtrit(freedom, 1 - alpha) * error  # of the interval for equivalence
    low = np.maximum(math.log1p(-margin) + within, -beyond)
    high = np.minimum(math.log1p(margin) - within, beyond)
    scale = np.maximum(np.sqrt(a + b), np.finfo(np.float64).tiny)
    upper, top, bottom, lower = (special.ndtr((x - difference) / scale) for x in (beyond, high, low, -beyond))
    decided = 1 - upper + np.maximum(0.0, top - bottom) + lower
    enough = np.flatnonzero(decided >= power)
    return int(n[enough[0]]) if len(enough) else None


def mean(values: Values) -> Estimate:
    """The mean with Student's standard error, which is infinite for a single value."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    assert n
    spread = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    if (values == values[0]).all() and n > 1:
        spread = 0.0  # rounding of the mean gives equal values a spread of 1e-17
    return Estimate(float(values.mean()), spread, max(n - 1, 1))


def _sum_of_variances(value: float, parts: Sequence[Estimate]) -> Estimate:
    """Independent parts added: Satterthwaite 1946, An approximate distribution of estimates of variance components."""
    variances = [part.standard_error**2 for part in parts]
    total = sum(variances)
    if not total or math.isinf(total):
        return Estimate(value, total, 1.0)
    shares = [variance / total for variance in variances]  # the square of a tiny variance would underflow
    freedom = 1 / sum(share**2 / part.freedom for share, part in zip(shares, parts, strict=True))
    return Estimate(value, math.sqrt(total), freedom)


def _resampled_sums(values: npt.NDArray[np.float64], resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Sums over units drawn with replacement: (units, columns) -> (resamples, columns)."""
    units = len(values)
    block = max(1, _COUNTS_AT_ONCE // units)
    if resamples <= block:
        return _counts(units, resamples, seed) @ values
    generator = np.random.default_rng(seed)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([_drawn(units, size, generator) @ values for size in sizes])


@lru_cache(maxsize=2)
def _counts(units: int, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Cached: all comparisons on one text use the same counts."""
    return _drawn(units, resamples, np.random.default_rng(seed))


def _drawn(units: int, resamples: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """How often each unit was drawn: (resamples, units)."""
    return generator.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)
