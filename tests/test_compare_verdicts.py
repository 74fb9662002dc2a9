"""The verdict claims a difference where there is one, rarely where there is none, and otherwise gives its reason."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from archbench.study.verdicts import MEANING, QualityRow, Scores, judge
from simulations import repeated, three_standard_errors

Array = npt.NDArray[np.float64]
Text = tuple[Array, Array]
CLAIMS = {"better", "worse", "below margin"}
SEED, BY_TEXT, BY_BOTH = 0.004, 0.01, 0.004
"""Standard deviations, relative: of a seed's mean, of what an architecture makes of a document, and a seed of it."""


class Simulation:
    """Architectures whose true bits per byte differ by a known factor."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)

    def text(self, units: int = 40) -> Text:
        """Bytes of each document, and its nats for an average model."""
        sizes = np.ceil(np.exp(self.generator.normal(8, 0.4, units)))
        return sizes, sizes * np.exp(self.generator.normal(0, 0.15, units))

    def scores(
        self,
        text: Text,
        difference: float = 0.0,
        *,
        name: str = "other",
        seeds: int = 5,
        sd: float = SEED,
        by_text: float = 0.0,
        by_both: float = BY_BOTH,
    ) -> Scores:
        sizes, nats = text
        units = len(sizes)
        luck = self.generator.normal(0, sd, (seeds, 1)) + self.generator.normal(0, by_both, (seeds, units))
        luck += self.generator.normal(0, by_text, units)
        unit_nats = nats * np.exp(math.log1p(difference) + luck)
        return Scores(name, (unit_nats.sum(axis=1) / sizes.sum() / math.log(2)).tolist(), unit_nats, sizes)

    def verdicts(self, repeats: int, difference: float, **spreads: float) -> Counter[str]:
        """On one other architecture, each time with new seeds and a new text."""
        found: Counter[str] = Counter()
        for _ in range(repeats):
            text = self.text()
            baseline = self.scores(text, **spreads)  # type: ignore[arg-type]
            found[judge(baseline, [self.scores(text, difference, **spreads)])[1].verdict] += 1  # type: ignore[arg-type]
        return found


@repeated(500, 2000)
@pytest.mark.parametrize(
    ("by_text", "others"),
    [
        (BY_TEXT, 3),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((BY_TEXT, 1), (0.0, 1), (0.0, 3))),
    ],
)
def test_where_nothing_differs_a_difference_is_claimed_in_at_most_5_percent(
    others: int, by_text: float, repeats: int
) -> None:
    """Comparisons with one and with three others: any claim on any of them counts.

    With ``by_text`` it is harder: what two architectures make of a text differs, though not over all text.
    """
    simulation = Simulation()
    claimed = 0
    for _ in range(repeats):
        text = simulation.text()
        baseline, *rest = (simulation.scores(text, by_text=by_text) for _ in range(1 + others))
        claimed += any(row.verdict in CLAIMS for row in judge(baseline, rest)[1:])
    bounds = stats.binomtest(claimed, repeats).proportion_ci(0.95, method="exact")
    assert claimed / repeats <= 0.05
    assert bounds.high <= (0.06 if repeats == 2000 else 0.075)
    assert bounds.low >= (0.02 if repeats == 2000 else 0.01)  # a rule that never claims anything fails here


@repeated(400, 1500)
def test_the_intervals_cover_the_true_difference_and_those_of_seeds_alone_do_not(repeats: int) -> None:
    """New seeds and new text each time: seeds alone know nothing of the text, and text alone nothing of seeds."""
    simulation = Simulation(1)
    covered: Counter[str] = Counter()
    for _ in range(repeats):
        text = simulation.text()
        pair = (simulation.scores(text, difference, by_text=BY_TEXT) for difference in (0.0, 0.01))
        row = asdict(judge(next(pair), [next(pair)])[1])
        for part in ("seed", "document", "combined"):
            covered[part] += row[f"{part}_low"] < 0.01 < row[f"{part}_high"]
    assert 0.93 <= covered["combined"] / repeats <= 0.97
    assert covered["seed"] / repeats < 0.92
    assert covered["document"] / repeats < 0.85


@repeated(300, 1000)
def test_a_difference_that_is_there_is_found_as_often_as_theory_says(repeats: int) -> None:
    """Three standard errors, 20 seeds a side that alone vary: the noncentral t with 38 degrees of freedom."""
    error = SEED * math.sqrt(2 / 20)
    power = stats.nct.sf(stats.t.ppf(0.975, 38), 38, 3)
    found = Simulation(2).verdicts(repeats, math.expm1(3 * error), seeds=20, by_both=0.0)
    claimed = found["worse"] + found["below margin"]
    assert claimed / repeats == pytest.approx(power, abs=three_standard_errors(power, repeats))
    assert found["better"] == 0


def test_fewer_bits_are_better() -> None:
    assert Simulation(3).verdicts(50, -0.02)["better"] == 50
    assert Simulation(3).verdicts(50, 0.02)["worse"] == 50


@repeated(150, 500)
def test_what_is_equal_is_found_equivalent_where_the_spread_allows_it(repeats: int) -> None:
    """The two one-sided tests: by the normal law, P(|difference| < margin - 1.65 standard errors)."""
    found = Simulation(4).verdicts(repeats, 0.0, sd=0.0008, by_both=0.0008)
    assert found["equivalent"] / repeats > 0.9
    assert found["inconclusive"] / repeats < 0.05
    assert Simulation(4).verdicts(repeats // 3, 0.0, sd=0.01)["equivalent"] == 0


@repeated(300, 1000)
def test_what_differs_by_the_margin_is_found_equivalent_in_at_most_5_percent(repeats: int) -> None:
    found = Simulation(5).verdicts(repeats, 0.0025, sd=0.0008, by_both=0.0008)
    assert found["equivalent"] / repeats <= 0.05


def test_a_significant_difference_below_the_margin_is_no_better() -> None:
    found = Simulation(6).verdicts(50, -0.001, sd=0.0002, by_both=0.0002)
    assert found["below margin"] == 50
    row = judge(*pair_of(-0.001, sd=0.0002), margin=0.0005)[1]
    assert row.verdict == "better"


def pair_of(difference: float, **spreads: float) -> tuple[Scores, list[Scores]]:
    simulation = Simulation(7)
    text = simulation.text()
    baseline = simulation.scores(text, name="base", **spreads)  # type: ignore[arg-type]
    return baseline, [simulation.scores(text, difference, **spreads)]  # type: ignore[arg-type]


def test_a_row_has_what_comparison_json_promises() -> None:
    rows = judge(*pair_of(0.05))
    assert list(asdict(rows[0])) == [
        "architecture", "seeds", "diverged", "lost", "bits_per_byte", "sd", "low", "high",
        "difference", "seed_low", "seed_high", "document_low", "document_high", "combined_low", "combined_high",
        "p", "p_holm", "verdict", "reason", "seeds_needed",
    ]  # fmt: skip
    first, other = rows
    assert (first.architecture, first.verdict, first.difference, first.p, first.reason) == (
        "base",
        "baseline",
        None,
        None,
        None,
    )
    assert (other.architecture, other.verdict, other.seeds, other.reason) == ("other", "worse", 5, None)
    assert other.difference == pytest.approx(other.bits_per_byte / first.bits_per_byte - 1)  # type: ignore[operator]
    assert {first.verdict, other.verdict} <= set(MEANING)


def test_without_others_there_is_the_baselines_row() -> None:
    assert [row.verdict for row in judge(pair_of(0.0)[0], [])] == ["baseline"]


def test_the_same_numbers_under_two_names_are_equivalent_and_not_a_division_by_zero() -> None:
    baseline, _ = pair_of(0.0, sd=0.0003, by_both=0.0003)
    row = judge(baseline, [replace(baseline, architecture="twin")])[1]
    assert (row.difference, row.p, row.verdict) == (0.0, 1.0, "equivalent")
    assert (row.document_low, row.document_high) == (0.0, 0.0)
    constant = replace(baseline, bits_per_byte=[1.1] * 5, unit_nats=np.ones((5, 40)), unit_bytes=np.ones(40))
    row = judge(constant, [replace(constant, architecture="twin")])[1]
    assert (row.p, row.combined_low, row.combined_high, row.verdict) == (1.0, 0.0, 0.0, "equivalent")
    row = judge(constant, [replace(constant, bits_per_byte=[1.2] * 5, unit_nats=np.full((5, 40), 12 / 11))])[1]
    assert (row.p, row.verdict) == (0.0, "worse")


def kept(scores: Scores, seeds: int) -> Scores:
    return replace(scores, bits_per_byte=scores.bits_per_byte[:seeds], unit_nats=scores.unit_nats[:seeds])


@pytest.mark.parametrize("side", ["base", "other"])
def test_two_seeds_give_no_verdict_but_their_difference(side: str) -> None:
    baseline, others = pair_of(0.05)
    few = judge(kept(baseline, 2), others) if side == "base" else judge(baseline, [kept(others[0], 2)])
    row = few[1]
    assert (row.verdict, row.p, row.p_holm, row.seeds_needed) == ("no verdict", None, None, None)
    assert row.reason == f"{side} has 2 seeds finished, and a verdict takes 3 on either side"
    assert row.difference == pytest.approx(0.05, abs=0.02)
    assert row.seed_low is not None
    assert row.seed_low < row.difference


def test_one_seed_or_none_leaves_out_what_cannot_be_said() -> None:
    baseline, others = pair_of(0.05)
    row = judge(baseline, [kept(others[0], 1)])[1]
    assert row.bits_per_byte is not None
    assert (row.sd, row.low, row.high, row.seed_low, row.combined_low) == (None, None, None, None, None)
    assert row.document_low is not None
    empty = Scores("other", [], np.empty((0, 0)), others[0].unit_bytes, lost=5)
    row = judge(baseline, [empty])[1]
    assert (row.bits_per_byte, row.difference, row.verdict, row.seeds, row.lost) == (None, None, "no verdict", 0, 5)
    assert row.reason is not None
    assert "other has 0 seeds finished" in row.reason
    assert "5 seeds of other lost" in row.reason
    assert judge(empty, others)[1].verdict == "no verdict"


@pytest.mark.parametrize("side", ["base", "other"])
def test_a_diverged_seed_gives_no_verdict_and_no_difference_of_the_survivors(side: str) -> None:
    baseline, others = pair_of(0.05)
    if side == "base":
        baseline = replace(kept(baseline, 4), diverged=1)
    else:
        others = [replace(kept(others[0], 4), diverged=1)]
    row = judge(baseline, others)[1]
    assert (row.verdict, row.difference, row.combined_low, row.p) == ("no verdict", None, None, None)
    assert f"1 seed of {side} diverged" in (row.reason or "")
    assert row.bits_per_byte is not None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_a_divergence(value: float) -> None:
    baseline, others = pair_of(0.05)
    bits, nats = list(others[0].bits_per_byte), others[0].unit_nats.copy()
    bits[2] = value
    row = judge(baseline, [replace(others[0], bits_per_byte=bits, diverged=1)])[1]
    assert (row.verdict, row.seeds, row.diverged) == ("no verdict", 4, 2)
    assert math.isfinite(row.bits_per_byte or math.nan)
    nats[1, 3] = value
    row = judge(baseline, [replace(others[0], unit_nats=nats)])[1]
    assert (row.verdict, row.seeds, row.diverged) == ("no verdict", 4, 1)


def test_a_lost_seed_leaves_fewer_and_is_told() -> None:
    baseline, others = pair_of(0.05)
    rows = judge(replace(kept(baseline, 4), lost=1), [replace(kept(others[0], 3), lost=2)])
    assert (rows[1].verdict, rows[1].seeds, rows[1].lost) == ("worse", 3, 2)
    assert "2 seeds of other" in (rows[1].reason or "")
    assert "1 seed of base" in (rows[1].reason or "")
    assert "1 seed of base" in (rows[0].reason or "")


@pytest.mark.parametrize("difference", [-0.05, 0.0, 0.05])
def test_a_rate_at_the_edge_makes_every_outcome_inconclusive_whoever_is_the_baseline(difference: float) -> None:
    """How good the flagged one can be is open: it is neither worse nor equal, and as a winner it found no optimum."""
    a, (b,) = pair_of(difference, sd=0.0005, by_both=0.0005)
    assert judge(a, [b])[1].verdict == {-0.05: "better", 0.0: "equivalent", 0.05: "worse"}[difference]
    row = judge(a, [replace(b, flagged=True)])[1]
    assert (row.verdict, row.seeds_needed) == ("inconclusive", None)
    assert row.reason is not None
    assert "edge" in row.reason
    assert (";" in row.reason) == (difference < 0), "a lead of the flagged one could only grow"
    assert row.p is not None
    swapped = judge(replace(b, flagged=True), [a])
    assert (swapped[1].verdict, swapped[1].reason) == ("inconclusive", row.reason)
    assert swapped[0].verdict == "baseline"
    assert "edge" in (swapped[0].reason or "")


def test_documents_of_no_bytes_change_nothing() -> None:
    def with_empty(scores: Scores) -> Scores:
        nats = np.insert(scores.unit_nats, [0, 7, 40], 0.0, axis=1)
        return replace(scores, unit_nats=nats, unit_bytes=np.insert(scores.unit_bytes, [0, 7, 40], 0.0))

    baseline, others = pair_of(0.004)
    assert judge(with_empty(baseline), [with_empty(others[0])]) == judge(baseline, others)


def test_a_single_document_gives_no_verdict() -> None:
    simulation = Simulation(8)
    text = simulation.text(units=1)
    row = judge(simulation.scores(text), [simulation.scores(text, 0.05)])[1]
    assert (row.verdict, row.document_low) == ("no verdict", None)
    assert row.reason is not None
    assert row.reason.count("single unit") == 1


def test_one_document_that_is_nearly_all_of_the_text_leaves_everything_open() -> None:
    """Its interval is beyond what a float holds, and what is written has to be JSON."""
    simulation = Simulation(8)
    sizes, nats = simulation.text()
    text = (np.append(sizes, 1e12), np.append(nats, 1e12))
    pair = [simulation.scores(text, difference, sd=0.0001, by_both=0.01) for difference in (0.0, 0.05)]
    row = judge(pair[0], pair[1:])[1]
    assert (row.verdict, row.document_low, row.document_high, row.seeds_needed) == ("inconclusive", None, None, None)
    json.dumps(asdict(row), allow_nan=False)


def test_scores_of_other_text_are_refused() -> None:
    simulation = Simulation(9)
    with pytest.raises(AssertionError, match="other"):
        judge(simulation.scores(simulation.text()), [simulation.scores(simulation.text())])


def test_inconclusive_says_how_wide_it_is_and_how_many_seeds_would_decide() -> None:
    row = judge(*pair_of(0.0))[1]
    assert row.verdict == "inconclusive"
    assert row.seeds_needed is not None
    assert 20 < row.seeds_needed < 200
    assert row.reason is not None
    assert "±0.25 %" in row.reason


def test_inconclusive_by_its_text_says_that_no_seeds_help() -> None:
    row = judge(*pair_of(0.0, by_text=0.05))[1]
    assert (row.verdict, row.seeds_needed) == ("inconclusive", None)
    assert row.reason is not None
    assert "1,000 seeds" in row.reason


@repeated(120, 300)
def test_with_the_seeds_that_were_needed_it_is_decided_four_times_in_five(repeats: int) -> None:
    """A small difference on one text, told from five seeds that happened to show what is true."""
    simulation = Simulation(10)
    text = simulation.text(units=200)

    def row(seeds: int) -> QualityRow:
        pair = [simulation.scores(text, difference, seeds=seeds, sd=0.003, by_both=0.0005) for difference in (0, 0.001)]
        return judge(pair[0], pair[1:])[1]

    needed = [told.seeds_needed for told in (row(30) for _ in range(repeats // 5)) if told.verdict == "inconclusive"]
    n = int(np.median([number for number in needed if number is not None]))
    decided = np.mean([row(n).verdict != "inconclusive" for _ in range(repeats)])
    assert 0.7 <= decided <= 0.95


def test_more_comparisons_ask_for_more_evidence() -> None:
    """Holm: what is significant alone need not be so beside others that are not."""
    simulation = Simulation(11)
    text = simulation.text()
    baseline, other = simulation.scores(text, seeds=8), simulation.scores(text, 0.004, seeds=8)
    rest = [simulation.scores(text, seeds=8, name=f"null {number}") for number in range(4)]
    alone, beside = judge(baseline, [other])[1], judge(baseline, [*rest, other])[-1]
    assert alone.p == beside.p
    assert alone.p_holm == alone.p
    assert beside.p_holm == pytest.approx(5 * (beside.p or math.nan))
    assert (alone.verdict, beside.verdict) == ("worse", "inconclusive")
    unjudged = [kept(scores, 2) for scores in rest]
    assert judge(baseline, [*unjudged, other])[-1].p_holm == alone.p  # what gets no verdict claims nothing
