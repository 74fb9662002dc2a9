"""A plugin with one fault fails the check that is meant for it and no other, by a sentence that names the fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from archbench.testing.checks import CHECKS
from archbench.testing.evaluation import Result, evaluate, selected
from right_variants import RIGHT_VARIANTS
from rotary_edits import Edit, WrongPlugin, subject
from wrong_plugins import WRONG_PLUGINS

EXPENSIVE = ("overfit", "compile")
"""Checks that take most of the time: by default only where they are meant, for every plugin with ``-m exhaustive``."""

CHEAP = [check.name for check in CHECKS if check.name not in EXPENSIVE]
EVERY_OTHER = 3
"""One wrong plugin in this many has a check by default that is not meant for it: another one each time."""

AGAIN = "blocks computed again in the backward pass"
FOR_FEW = {
    "flops": ("a scan, declared", AGAIN),
    "train_step": ("an auxiliary loss", AGAIN),
    "gradients": ("branches that begin at zero", "a tied head"),
    "generate": ("a generator function", "a sampler of its own"),
    "cached_decode": ("no cache", "positions past the context"),
    "too_long": ("positions past the context", "no cache"),
    "bfloat16": ("a head that caps its logits", "an embedding of standard deviation 1"),
    "seed": ("dropout", "branches that begin at zero"),
}
"""The unusual plugins on which a check is run by default, where they touch what it looks at. Of the other cheap checks
each is run on a third, other ones each time; ``-m exhaustive`` runs every check on every one."""

EVERY = [check.name for check in CHECKS]

LONGEST_MESSAGE = 600

MANY = 10
"""Wrong plugins that a check has by default, at most: spread evenly over those it is to find."""


def by_default(wrong: WrongPlugin) -> bool:
    of_the_check = [other for other in WRONG_PLUGINS if other.check == wrong.check]
    number, each = of_the_check.index(wrong), max(1.0, len(of_the_check) / MANY)
    return int(number / each) != int((number - 1) / each) or number == 0


wrong_plugins = pytest.mark.parametrize("wrong", WRONG_PLUGINS, ids=lambda wrong: wrong.name)
sampled = pytest.mark.parametrize(
    "wrong",
    [pytest.param(one, id=one.name, marks=[] if by_default(one) else [pytest.mark.slow]) for one in WRONG_PLUGINS],
)
right_variants = pytest.mark.parametrize("name", RIGHT_VARIANTS)


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Some of the wrong plugins change what the process shares."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def results(name: str, edits: tuple[Edit, ...], folder: Path, checks: Iterable[str]) -> list[Result]:
    return list(evaluate(subject(name, edits, folder), selected(checks, CHECKS)))


def needs(name: str) -> set[str]:
    """The check itself and all without which it cannot be judged."""
    (check,) = selected([name], CHECKS)
    return {name}.union(*map(needs, check.needs))


def others(wrong: WrongPlugin) -> list[str]:
    """Cheap checks that this plugin has to pass; together the plugins meet each check several times."""
    turn, left = divmod(WRONG_PLUGINS.index(wrong), EVERY_OTHER)
    in_turns = (CHEAP[(turn + i) % len(CHEAP)] for i in range(len(CHEAP)))
    return [name for name in in_turns if wrong.check not in needs(name)][:1] if left == 0 else []


def unusual(name: str) -> list[str]:
    """Checks that this unusual plugin has to pass by default."""
    turn = list(RIGHT_VARIANTS).index(name)
    few = [check for check, names in FOR_FEW.items() if name in names]
    return few + [check for i, check in enumerate(CHEAP) if check not in FOR_FEW and (i + turn) % 3 == 0]


def assert_fails_as_meant(wrong: WrongPlugin, found: list[Result], folder: Path) -> None:
    failed = {result.name: result.evidence for result in found if not result.good and result.status != "not run"}
    assert {wrong.check} <= set(failed) <= {wrong.check, *wrong.on_some_machines}, failed
    message = failed[wrong.check].replace(f"{folder}/", "")
    assert wrong.says in message, message
    assert "archbench/testing" not in message
    assert len(message) <= LONGEST_MESSAGE, message


def assert_right(found: list[Result]) -> None:
    assert not {result.name: result.evidence for result in found if not result.good}


def test_every_check_has_a_plugin_to_catch() -> None:
    assert {wrong.check for wrong in WRONG_PLUGINS} == {check.name for check in CHECKS}


def test_the_right_plugin_passes_every_check(tmp_path: Path) -> None:
    found = results("as it is", (), tmp_path, EVERY)
    assert {result.name: result.status for result in found} == {check.name: "passed" for check in CHECKS}


def test_each_cheap_check_is_run_on_plugins_that_it_is_not_meant_for() -> None:
    met = Counter(name for wrong in filter(by_default, WRONG_PLUGINS) for name in others(wrong))
    assert {*CHEAP} - set(met) <= {"seed"}, "most wrong plugins fail a check that this one needs"
    assert min(met.values()) >= 1, met


@sampled
def test_a_wrong_plugin_fails_the_check_meant_for_it(wrong: WrongPlugin, tmp_path: Path) -> None:
    assert_fails_as_meant(wrong, results(wrong.name, wrong.edits, tmp_path, [wrong.check, *others(wrong)]), tmp_path)


def test_few_and_known_are_the_plugins_that_a_check_is_kept_to() -> None:
    assert {name for few in FOR_FEW.values() for name in few} <= set(RIGHT_VARIANTS)
    assert set(FOR_FEW) <= set(CHEAP)
    assert set().union(*map(unusual, RIGHT_VARIANTS)) == set(CHEAP)


@right_variants
def test_what_is_unusual_and_right_fails_no_check(name: str, tmp_path: Path) -> None:
    assert_right(results(name, RIGHT_VARIANTS[name], tmp_path, unusual(name)))


@pytest.mark.exhaustive
@wrong_plugins
def test_a_wrong_plugin_fails_no_other_check_at_all(wrong: WrongPlugin, tmp_path: Path) -> None:
    assert_fails_as_meant(wrong, results(wrong.name, wrong.edits, tmp_path, EVERY), tmp_path)


@pytest.mark.exhaustive
@right_variants
def test_what_is_unusual_and_right_fails_no_check_at_all(name: str, tmp_path: Path) -> None:
    assert_right(results(name, RIGHT_VARIANTS[name], tmp_path, EVERY))
