"""Intervals cover what they claim, tests err as rarely as they claim, and the numbers are scipy's where it has them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from archbench.study import statistics
from archbench.study.statistics import (
    Estimate,
    combined,
    holm,
    mean,
    paired_bootstrap,
    seed_part,
    seeds_needed,
    welch,
)

Array = npt.NDArray[np.float64]
TEXT = Estimate(0.0, 0.0003, 40.0)
"""What the text leaves open."""


def coverage(repeats: int, covers: Callable[[np.random.Generator], bool]) -> float:
    generator = np.random.default_rng(0)
    return sum(covers(generator) for _ in range(repeats)) / repeats


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (5, 5), (40, 4)])
def test_welch_is_scipys(n: int, m: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(1.02, 0.01, n), generator.normal(1.0, 0.03, m)
    ours, theirs = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert ours.value == pytest.approx(a.mean() - b.mean())
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.freedom == pytest.approx(theirs.df)
    assert ours.value / ours.standard_error == pytest.approx(theirs.statistic)
    for confidence in (0.9, 0.95):
        assert ours.interval(confidence) == pytest.approx(tuple(theirs.confidence_interval(confidence)))


def test_without_any_spread_equal_is_equal_and_different_is_different() -> None:
    """The same seeds of the same architecture under two names; 0.1 has no exact mean in binary."""
    same = welch([0.1, 0.1, 0.1], [0.1, 0.1, 0.1])
    assert (same.value, same.standard_error, same.p) == (0.0, 0.0, 1.0)
    assert same.interval(0.95) == (0.0, 0.0)
    other = welch([0.3, 0.3, 0.3], [0.1, 0.1, 0.1])
    assert other.p == 0.0
    assert other.interval(0.95) == (other.value, other.value)
    one_sided = welch([0.1, 0.1, 0.1], [0.1, 0.2, 0.3])
    assert one_sided.freedom == pytest.approx(2.0)
    both = combined(seed_part([0.1] * 3, [0.1] * 3), paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]))
    assert (both.value, both.p, both.interval(0.95)) == (0.0, 1.0, (0.0, 0.0))


def test_one_seed_says_nothing() -> None:
    alone = welch([1.0], [2.0, 2.1])
    assert alone.p == 1.0
    assert alone.interval(0.95) == (-math.inf, math.inf)
    assert mean([3.0]).interval(0.95) == (-math.inf, math.inf)


@pytest.mark.parametrize(("n", "m", "sd"), [(3, 3, 1.0), (5, 5, 1.0), (5, 5, 3.0), (3, 5, 2.0)])
def test_welchs_interval_over_seeds_covers(n: int, m: int, sd: float) -> None:
    """As it should by Welch's approximation: slightly more than 95 % with the fewest."""

    def covers(generator: np.random.Generator) -> bool:
        low, high = welch(generator.normal(0, 1, n), generator.normal(0, sd, m)).interval(0.95)
        return low < 0 < high

    assert 0.93 <= coverage(4000, covers) <= 0.97


def test_a_bootstrap_over_seeds_would_not() -> None:
    """Why it is not used: percentiles of 1,000 resamples of a difference of means."""
    generator = np.random.default_rng(0)
    found = []
    for n in (3, 4, 5):
        a, b = generator.normal(0, 1, (2, 1500, n))
        drawn = generator.integers(n, size=(2, 1000, n))
        differences = a[:, drawn[0]].mean(axis=2) - b[:, drawn[1]].mean(axis=2)  # (repeats, resamples)
        low, high = np.quantile(differences, [0.025, 0.975], axis=1)
        found.append(float(((low < 0) & (high > 0)).mean()))
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.81, abs=0.03)  # three standard errors of a share of 1,500
    assert found[2] == pytest.approx(0.88, abs=0.03)


def test_the_seeds_interval_covers_far_from_equality_too() -> None:
    """Where the baseline is 30 % better and its seeds vary most, Welch's divided by its mean would cover 86 %."""
    truth = math.log(1.3)
    narrow = 0

    def covers(generator: np.random.Generator) -> bool:
        nonlocal narrow
        a, b = generator.normal(1.3, 0.005, 5), generator.normal(1.0, 0.02, 5)
        low, high = np.array(welch(a, b).interval(0.95)) / b.mean()
        narrow += low < 0.3 < high
        low, high = seed_part(a, b).interval(0.95)
        return bool(low < truth < high)

    assert 0.93 <= coverage(3000, covers) <= 0.97
    assert narrow / 3000 < 0.92


def test_swapping_the_two_changes_the_sign_only() -> None:
    a, b = [1.00, 1.01, 1.03], [1.2, 1.25, 1.21, 1.3]
    assert seed_part(a, b).value == -seed_part(b, a).value
    assert seed_part(a, b).p == pytest.approx(seed_part(b, a).p)
    forth, back = paired_bootstrap([5.0, 3.0, 9.0], [4.0, 4.0, 8.0]), paired_bootstrap([4.0, 4.0, 8.0], [5.0, 3.0, 9.0])
    assert forth.value == pytest.approx(-back.value)
    assert forth.standard_error == pytest.approx(back.standard_error)


def documents(generator: np.random.Generator, units: int, sigma: float) -> tuple[Array, Array]:
    """Nats of two models, whose ratio of sums is exp(0.003) over all text; lengths are log-normal."""
    lengths = np.exp(generator.normal(0, sigma, units))
    baseline = lengths * np.exp(generator.normal(0, 0.2, units))
    return baseline * math.exp(0.003) + lengths * generator.normal(0, 0.02, units), baseline


@pytest.mark.parametrize("units", [10, 30, 100])
@pytest.mark.parametrize(("sigma", "most"), [(0.0, 0.97), (0.5, 0.97), (1.0, 0.985)])
def test_the_documents_interval_covers(units: int, sigma: float, most: float) -> None:
    """Few documents of very unequal lengths make it too wide rather than too narrow."""

    def covers(generator: np.random.Generator) -> bool:
        low, high = paired_bootstrap(*documents(generator, units, sigma)).interval(0.95)
        return low < 0.003 < high

    assert 0.93 <= coverage(2000, covers) <= most


def test_percentiles_of_a_bootstrap_over_ten_documents_would_not() -> None:
    counts = np.random.default_rng(1).multinomial(10, np.full(10, 0.1), size=2000).astype(np.float64)

    def covers(generator: np.random.Generator) -> bool:
        a, b = documents(generator, 10, 0.5)
        low, high = np.quantile(np.log((counts @ a) / (counts @ b)), [0.025, 0.975])
        return bool(low < 0.003 < high)

    assert coverage(1000, covers) < 0.92


def test_the_documents_standard_error_is_that_of_scipys_bootstrap() -> None:
    a, b = documents(np.random.default_rng(3), 200, 0.3)

    def log_ratio(a: Array, b: Array, axis: int) -> Array:
        return np.log(a.sum(axis=axis) / b.sum(axis=axis))

    theirs = stats.bootstrap((a, b), log_ratio, paired=True, method="percentile", rng=0, n_resamples=5000)
    ours = paired_bootstrap(a, b)
    assert ours.value == pytest.approx(math.log(a.sum() / b.sum()))
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=0.06)  # 2.5 standard errors of the two


def test_the_pairing_counts() -> None:
    """What makes a document hard for both models is no uncertainty of their difference."""
    generator = np.random.default_rng(4)
    a, b = documents(generator, 100, 0.5)
    assert paired_bootstrap(a, b).standard_error < 0.2 * paired_bootstrap(a, generator.permutation(b)).standard_error


def test_documents_without_any_nats_change_nothing() -> None:
    a, b = documents(np.random.default_rng(5), 12, 0.5)
    with_empty = (np.insert(x, [0, 5, 5, 12], 0.0) for x in (a, b))
    assert paired_bootstrap(*with_empty) == paired_bootstrap(a, b)


def test_the_documents_part_is_the_same_each_time_and_however_much_fits_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = documents(np.random.default_rng(6), 40, 0.5)
    at_once = paired_bootstrap(a, b)
    assert paired_bootstrap(a, b) == at_once
    assert paired_bootstrap(a, b, seed=1) != at_once
    monkeypatch.setattr(statistics, "_COUNTS_AT_ONCE", 40 * 300)
    assert paired_bootstrap(a, b).standard_error == pytest.approx(at_once.standard_error, rel=1e-9)


def test_one_document_that_is_nearly_all_of_the_text_does_not_pass_for_many() -> None:
    a, b = documents(np.random.default_rng(7), 50, 0.0)
    a[0], b[0] = 10_000.0, 10_100.0
    assert paired_bootstrap(a, b).freedom < 0.1
    assert paired_bootstrap(a, b).p > 0.5
    assert paired_bootstrap(a[:1], b[:1]).interval(0.95) == (-math.inf, math.inf)


def test_the_parts_add_up() -> None:
    seeds, text = Estimate(0.01, 0.003, 8.0), Estimate(0.0101, 0.004, 50.0)
    both = combined(seeds, text)
    assert both.value == 0.01
    assert both.standard_error == pytest.approx(0.005)
    assert both.freedom == pytest.approx(25**2 / (9**2 / 8 + 16**2 / 50))
    assert combined(seeds, Estimate(0.01, 0.0, 1.0)) == Estimate(0.01, pytest.approx(0.003), pytest.approx(8.0))
    assert combined(seeds, Estimate(0.01, math.inf, 1.0)).p == 1.0


def test_holms_p_values_are_those_of_a_worked_case() -> None:
    """As R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") has them."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_claims_nothing_falsely_but_in_5_percent_whatever_else_is_true() -> None:
    generator = np.random.default_rng(0)
    null = generator.uniform(size=(4000, 3))
    real = generator.uniform(0, 1e-4, (4000, 2))  # differences that are there
    false = [min(holm([*r, *n])[2:]) < 0.05 for r, n in zip(real, null, strict=True)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.0105)  # three standard errors; with factors of 5 it were 3 %
    assert np.mean(null.min(axis=1) < 0.05) > 0.13


@pytest.mark.parametrize("away", [2.0, 3.0, 4.0])
def test_a_difference_is_found_as_often_as_theory_says(away: float) -> None:
    """``away`` standard errors, five seeds a side: the tails of the noncentral t with 8 degrees of freedom."""
    limit = stats.t.ppf(0.975, 8)
    power = stats.nct.sf(limit, 8, away) + stats.nct.cdf(-limit, 8, away)
    shift = away * math.sqrt(2 / 5)
    found = coverage(3000, lambda g: welch(g.normal(shift, 1, 5), g.normal(0, 1, 5)).p < 0.05)
    assert found == pytest.approx(power, abs=0.035)  # 3 standard errors, and Welch's few degrees of freedom less


def decided(a: Array, b: Array, text: Estimate, margin: float) -> bool:
    both = combined(seed_part(a, b), text)
    low, high = both.interval(0.9)
    return both.p < 0.05 or (math.log1p(-margin) < low and high < math.log1p(margin))


@pytest.mark.parametrize(("difference", "sd"), [(0.0, 0.003), (0.001, 0.003), (0.002, 0.006), (0.006, 0.012)])
def test_the_number_of_seeds_decides_as_often_as_it_says(difference: float, sd: float) -> None:
    """80 % where difference and spread are as they seem, and with three fifths of the seeds clearly less often."""
    needed = seeds_needed(difference, (sd, sd), TEXT, present=5, margin=0.0025, confidence=0.95)
    assert needed is not None

    def share(n: int) -> float:
        return coverage(
            1500,
            lambda g: decided(g.normal(math.exp(difference), sd, n), g.normal(1, sd, n), TEXT, 0.0025),
        )

    assert share(needed) == pytest.approx(0.8, abs=0.04)
    assert share(int(0.6 * needed)) < 0.72


def test_more_spread_more_tests_or_more_power_takes_more_seeds() -> None:
    def number(sd: float = 0.004, tests: int = 1, power: float = 0.8) -> int:
        n = seeds_needed(0.002, (sd, sd), TEXT, present=5, margin=0.0025, confidence=0.95, tests=tests, power=power)
        assert n is not None
        return n

    assert 5 < number() < number(sd=0.008) < number(sd=0.016)
    assert number() < number(tests=4)
    assert number(power=0.5) < number()


def test_no_number_of_seeds_decides_what_the_text_leaves_open() -> None:
    def number(text: float, sd: float = 0.003) -> int | None:
        text_part = Estimate(0.001, text, 20.0)
        return seeds_needed(0.001, (sd, sd), text_part, present=5, margin=0.0025, confidence=0.95)

    assert number(0.0015) is None
    assert number(math.inf) is None
    assert number(0.0003) is not None
    assert number(0.0003, sd=1.0) is None  # more than a thousand


def test_means_have_students_interval() -> None:
    values = [1.0, 1.2, 0.9, 1.05]
    own = mean(values)
    assert own.value == pytest.approx(np.mean(values))
    assert own.interval(0.95) == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
