"""The search for a learning rate finds the true one, says where it could not, and flatters no one afterwards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from archbench.study.learning_rates import FACTORS, MOST_ADDED, Point, Tuning, choose, next_factor, tuning

DEFAULT = 3e-4
NAN, INF = math.nan, math.inf
Loss = Callable[[float], float | None]


def points(values: dict[float, float | None]) -> list[Point]:
    return [Point(DEFAULT * factor, factor, (value, value)) for factor, value in values.items()]


def searched(loss: Loss) -> list[Point]:
    """All of the search, as a comparison does it."""
    found = points({factor: loss(factor) for factor in FACTORS})
    while (factor := next_factor(found)) is not None:
        found += points({factor: loss(factor)})
    return found


def valley(best: float) -> Loss:
    """A parabola in log learning rate with its minimum at ``best`` times the default."""
    return lambda factor: 1.5 + 0.02 * math.log(factor / best) ** 2


@pytest.mark.parametrize("best", [0.37, 0.5, 1.0, 1.3, 2.7])
def test_the_minimum_of_a_parabola_is_found_exactly(best: float) -> None:
    found = searched(valley(best))
    assert len(found) == len(FACTORS)
    choice = choose(found)
    assert choice.learning_rate == pytest.approx(DEFAULT * best)
    assert (choice.flagged, choice.note) == (False, None)


def test_the_choice_lies_between_the_neighbours_of_the_best_point_whatever_the_curve() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        found = points(dict(zip(FACTORS, generator.uniform(1, 2, 5).tolist(), strict=True)))
        choice, best = choose(found), min(range(5), key=lambda index: found[index].mean or INF)
        assert choice.learning_rate is not None
        assert choice.flagged == (best in (0, 4))
        if not choice.flagged:
            assert found[best - 1].learning_rate < choice.learning_rate < found[best + 1].learning_rate


def test_equal_losses_choose_the_lower_rate_and_no_division_by_zero() -> None:
    flat = points({0.25: 2.0, 0.5: 1.0, 1.0: 1.0, 2.0: 1.0, 4.0: 2.0})
    assert choose(flat).learning_rate == pytest.approx(DEFAULT * math.sqrt(0.5))
    assert choose(points({0.5: 1.0, 1.0: 1.0, 2.0: 1.0})).flagged


@pytest.mark.parametrize(("best", "beyond"), [(7.0, [8.0, 16.0]), (0.15, [0.125, 0.0625]), (5.0, [8.0])])
def test_an_optimum_beyond_the_edge_is_followed(best: float, beyond: list[float]) -> None:
    found = searched(valley(best))
    assert [point.factor for point in found[len(FACTORS) :]] == beyond
    choice = choose(found)
    assert choice.learning_rate == pytest.approx(DEFAULT * best)
    assert not choice.flagged


@pytest.mark.parametrize(("best", "last", "side"), [(100.0, 16.0, "upper"), (0.001, 0.0625, "lower")])
def test_an_optimum_still_at_the_edge_after_two_more_is_flagged(best: float, last: float, side: str) -> None:
    found = searched(valley(best))
    assert len(found) == len(FACTORS) + MOST_ADDED
    choice = choose(found)
    assert choice.learning_rate == pytest.approx(DEFAULT * last)
    assert choice.flagged
    assert choice.note == f"the best rate tried is the {side} edge of the search"


@pytest.mark.parametrize("diverged", [INF, NAN])
def test_a_divergence_above_bounds_the_search_and_is_no_edge(diverged: float) -> None:
    inside = searched(lambda factor: valley(100.0)(factor) if factor < 4 else diverged)
    assert len(inside) == len(FACTORS)
    beyond = searched(lambda factor: valley(100.0)(factor) if factor < 8 else diverged)
    assert beyond[-1].factor == 8.0
    for found, best in ((inside, 2.0), (beyond, 4.0)):
        choice = choose(found)
        assert choice.learning_rate == DEFAULT * best
        assert not choice.flagged
        assert choice.note == f"the best rate tried, bounded above by a divergence at {2 * DEFAULT * best:.3g}"


def test_one_diverged_seed_makes_its_rate_unfit() -> None:
    """The mean of the survivors would flatter it."""
    found = points({0.25: 1.3, 0.5: 1.2, 1.0: 1.1})
    found += [Point(DEFAULT * 2, 2.0, (1.0, INF)), Point(DEFAULT * 4, 4.0, (INF, INF))]
    assert found[3].mean is None
    assert choose(found).learning_rate == DEFAULT
    assert next_factor(found) is None


def test_a_divergence_below_bounds_nothing() -> None:
    """What trains at a higher rate diverged by accident at a lower one."""
    found = searched(lambda factor: INF if factor < 0.5 else valley(0.5)(factor))
    assert [point.factor for point in found[len(FACTORS) :]] == [0.125, 0.0625]
    assert choose(found).flagged
    found = searched(lambda factor: INF if factor == 0.25 else valley(0.5)(factor))
    assert found[-1].factor == 0.125
    choice = choose(found)
    assert choice.learning_rate == DEFAULT * 0.5
    assert not choice.flagged
    assert choice.note == f"the best rate tried, since its neighbour {DEFAULT / 4:.3g} diverged"


def test_a_trial_that_was_lost_says_nothing_about_its_rate() -> None:
    """Out of memory, or killed: it neither bounds the search nor counts with the one seed that is left."""
    lost_beyond = searched(lambda factor: None if factor == 8 else valley(100.0)(factor))
    assert [point.factor for point in lost_beyond[len(FACTORS) :]] == [8.0, 16.0]
    assert choose(searched(lambda factor: None if factor > 4 else valley(100.0)(factor))).flagged
    found = points({0.25: 1.3, 0.5: 1.1, 1.0: 1.0, 4.0: 1.4})
    choice = choose([*found, Point(DEFAULT * 2, 2.0, (0.9, None))])
    assert choice.learning_rate == DEFAULT
    assert choice.note == f"the best rate tried, since its neighbour {2 * DEFAULT:.3g} failed"


def test_where_all_diverged_it_goes_on_below_and_then_says_so() -> None:
    assert choose(searched(lambda factor: INF if factor > 0.1 else 1.0 + factor)).learning_rate == DEFAULT * 0.0625
    found = searched(lambda factor: INF)
    assert [point.factor for point in found[len(FACTORS) :]] == [0.125, 0.0625]
    choice = choose(found)
    assert (choice.learning_rate, choice.flagged) == (None, False)
    assert choice.note


def test_where_all_were_lost_nothing_more_is_tried() -> None:
    found = searched(lambda factor: None)
    assert len(found) == len(FACTORS)
    assert choose(found).note
    assert choose(found).learning_rate is None


def test_other_first_rates_have_two_more_as_well() -> None:
    few = points({1.0: 1.0, 0.5: 2.0})
    assert next_factor(few, (0.5, 1.0)) == 2.0
    few += points({2.0: 0.9})
    assert next_factor(few, (0.5, 1.0)) == 4.0
    assert next_factor([*few, *points({4.0: 0.8})], (0.5, 1.0)) is None


def test_a_curve_is_what_comparison_json_promises() -> None:
    found = [Point(DEFAULT * 2, 2.0, (INF, 1.2)), Point(DEFAULT, 1.0, (1.0, 1.2)), Point(DEFAULT / 2, 0.5, (None, NAN))]
    plain = json.loads(json.dumps(tuning("gpt1", found, DEFAULT).model_dump(mode="json"), allow_nan=False))
    assert list(plain) == ["architecture", "learning_rate", "flagged", "note", "points"]
    assert [point["factor"] for point in plain["points"]] == [0.5, 1.0, 2.0]
    assert plain["points"][1] == {
        "learning_rate": DEFAULT,
        "factor": 1.0,
        "bits_per_byte": [1.0, 1.2],
        "mean": pytest.approx(1.1),
    }
    assert plain["points"][0]["bits_per_byte"] == [None, None]
    assert plain["points"][2]["bits_per_byte"] == [None, 1.2]
    assert plain["points"][2]["mean"] is None


def test_without_a_search_the_recipes_rate_stands() -> None:
    untried = [Point(DEFAULT, 1.0, ())]
    note = "not tuned: the recipe's own learning rate"
    assert tuning("gpt1", untried, DEFAULT, tuned=False) == Tuning(
        architecture="gpt1", learning_rate=DEFAULT, flagged=False, note=note, points=[]
    )


def test_with_noise_the_parabola_comes_nearer_to_the_truth_than_the_best_point() -> None:
    generator = np.random.default_rng(1)
    off: list[tuple[float, float]] = []
    for _ in range(500):
        best = math.exp(generator.uniform(math.log(0.6), math.log(1.7)))
        found = points({factor: valley(best)(factor) + generator.normal(0, 0.002) for factor in FACTORS})  # type: ignore[operator]
        top = min(found, key=lambda point: point.mean or INF)
        choice = choose(found)
        assert choice.learning_rate is not None
        off.append((math.log(choice.learning_rate / DEFAULT / best), math.log(top.factor / best)))
    of_parabola, of_point = np.sqrt((np.array(off) ** 2).mean(axis=0))
    assert of_parabola < 0.7 * of_point


def test_the_score_of_the_best_trial_flatters_hence_fresh_seeds() -> None:
    """Five rates that do equally well: the best mean lies 1.16 of its standard deviations below the truth."""
    generator = np.random.default_rng(2)
    best = []
    for _ in range(4000):
        found = [Point(factor, factor, tuple(generator.normal(1.0, 0.01, 2))) for factor in FACTORS]
        best.append(min(point.mean or INF for point in found))
    sd = 0.01 / math.sqrt(2)
    assert (1.0 - np.mean(best)) / sd == pytest.approx(1.163, abs=0.05)  # Tippett 1925: the least of five normal values
