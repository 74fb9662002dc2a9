"""The timing rule: its intervals are Student's, its verdicts follow from them, and it keeps its promises."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from archbench.regression.estimates import Estimate, level, paired, unpaired
from archbench.regression.verdict_table import LIMIT, timed_row

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 6.314), (2, 2.920), (3, 2.353), (4, 2.132), (5, 2.015), (8, 1.860), (14, 1.761), (15, 1.753), (30, 1.697)],
)
def test_the_bounds_are_those_of_the_published_table(freedom: int, quantile: float) -> None:
    """Student's t at 95 %, one-sided: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2."""
    n = freedom + 1
    head = np.linspace(-1, 1, n)
    reach = quantile * head.std(ddof=1) / math.sqrt(n)
    assert math.log(paired([0.0] * n, head.tolist()).high) == pytest.approx(reach, rel=3e-4)


def test_the_intervals_are_those_of_scipy() -> None:
    generator = np.random.default_rng(5)
    base, head = generator.normal(0, 0.03, 6), generator.normal(0.1, 0.03, 6)
    two_by_two, apart = paired(base.tolist(), head.tolist()), unpaired(base[:4].tolist(), head.tolist())
    expected = stats.ttest_rel(head, base).confidence_interval(0.9)  # each bound on its own holds in 95 %
    assert np.log([two_by_two.low, two_by_two.high]) == pytest.approx(list(expected))
    expected = stats.ttest_ind(head, base[:4], equal_var=True).confidence_interval(0.9)
    assert np.log([apart.low, apart.high]) == pytest.approx(list(expected))


@pytest.mark.slow
def test_what_only_measures_does_not_wait_for_scipy() -> None:
    """Each process of a comparison would, and its memory would be other than that of a revision without it."""
    code = "import sys, archbench.regression.benchmark, archbench.regression.estimates; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_level_is_the_logarithm_of_the_ratio_whatever_few_samples_say() -> None:
    samples = [(2.0, 3.0)] * 8 + [(2.0, 300.0), (2.0, 0.03)]
    assert level(samples) == pytest.approx(math.log(1.5))


def test_pairs_that_differ_alike_have_a_narrow_interval_and_others_a_wide_one() -> None:
    base = [0.0, 0.3, -0.2, 0.1]
    alike = paired(base, [value + math.log(1.2) for value in base])
    assert alike.low == pytest.approx(1.2)
    assert alike.high == pytest.approx(1.2)
    apart = unpaired(base, [value + math.log(1.2) for value in base])
    assert apart.ratio == pytest.approx(1.2)
    assert apart.low < 1 < 1.2 < apart.high


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_each_bound_holds_95_times_in_100(kind: str) -> None:
    generator = np.random.default_rng(0)
    above = below = 0
    for _ in range(4000):
        base, head = generator.normal(0, 0.03, 4), generator.normal(0.1, 0.03, 4)
        estimate = (paired if kind == "paired" else unpaired)(base.tolist(), head.tolist())
        above += estimate.low > math.exp(0.1)
        below += estimate.high < math.exp(0.1)
    assert above / 4000 == pytest.approx(0.05, abs=0.012)  # 3.5 standard errors of a share of 4,000
    assert below / 4000 == pytest.approx(0.05, abs=0.012)


def test_one_process_a_side_says_nothing() -> None:
    assert paired([0.0], [1.0]) == Estimate(pytest.approx(math.e), 0.0, math.inf, 1)
    assert unpaired([0.0], [1.0]).high == math.inf


def verdict(estimate: Estimate | None, rerun: Estimate | None = None, *, judged: bool = True) -> str:
    return timed_row("x", "decode", [0.0], [0.1], estimate, rerun, judged=judged).verdict


def test_a_time_fails_only_beyond_the_gate_and_only_twice() -> None:
    beyond, near, fine = Estimate(1.2, 1.11, 1.3, 3), Estimate(1.2, 1.09, 1.3, 3), Estimate(1.0, 0.9, 1.09, 3)
    assert verdict(beyond, beyond) == "FAIL"
    assert verdict(beyond, near) == verdict(beyond, fine) == verdict(beyond) == "not confirmed"
    assert verdict(near) == "unclear"
    assert verdict(fine) == "ok"
    assert verdict(None) == "NEW"


def test_what_others_may_use_is_reported_and_not_judged() -> None:
    beyond = Estimate(2.0, 1.9, 2.1, 3)
    assert verdict(beyond, beyond, judged=False) == "report"
    assert verdict(beyond, beyond, judged=True) == "FAIL"


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("regression_gate", ROOT / "benchmarks" / "regression_gate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("metric", ["train_step", "prefill", "decode"])
def test_on_samples_of_a_busy_machine_it_spares_what_is_the_same_and_catches_20_percent(
    gate: ModuleType, metric: str
) -> None:
    """The promise: at most 2 % and at least 95 %. benchmarks/regression_gate.py simulate has more runs."""
    ratios = np.load(gate.RECORDED)[metric]
    generator = np.random.default_rng(1)

    def failures(slowdown: float) -> int:
        return sum(gate._simulated(ratios, math.log(slowdown), generator, saved=False)[0] for _ in range(100))

    assert failures(1.0) <= 2
    assert failures(1.2) >= 95
    assert gate.LIMIT == LIMIT == 1.10


def test_the_intervals_of_shares_are_exact(gate: ModuleType) -> None:
    """Against closed forms, and a tabulated case (Clopper and Pearson 1934; 3 of 10 at 95 %)."""
    assert gate.clopper_pearson(0, 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)), abs=1e-6)
    assert gate.clopper_pearson(20, 20) == pytest.approx((0.025 ** (1 / 20), 1.0), abs=1e-6)
    assert gate.clopper_pearson(3, 10) == pytest.approx((0.0667, 0.6525), abs=1e-4)
