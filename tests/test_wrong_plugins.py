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
OTHERS = 1
"""Checks that are not meant for a wrong plugin, and are run on it all the same by default: other ones each time."""

AGAIN = "blocks computed again in the backward pass"
FOR_FEW = {
    "flops": ("a scan, declared", "a tied head", "no cache", AGAIN),
    "train_step": ("an auxiliary loss", "dropout", "a tied head", AGAIN),
    "gradients": ("branches that begin at zero", "dropout", "a tied head", AGAIN),
}
"""The dearest of the cheap checks, and the unusual plugins on which they are run by default: those that touch what they
look at. ``-m exhaustive`` runs them on every one."""

EVERY = [check.name for check in CHECKS]

LONGEST_MESSAGE = 600

wrong_plugins = pytest.mark.parametrize("wrong", WRONG_PLUGINS, ids=lambda wrong: wrong.name)
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
    start = OTHERS * WRONG_PLUGINS.index(wrong)
    names = [CHEAP[(start + i) % len(CHEAP)] for i in range(OTHERS)]
    return [name for name in names if wrong.check not in needs(name)]


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
    met = Counter(name for wrong in WRONG_PLUGINS for name in others(wrong))
    assert set(met) == set(CHEAP)
    assert min(met.values()) >= 5


@wrong_plugins
def test_a_wrong_plugin_fails_the_check_meant_for_it(wrong: WrongPlugin, tmp_path: Path) -> None:
    assert_fails_as_meant(wrong, results(wrong.name, wrong.edits, tmp_path, [wrong.check, *others(wrong)]), tmp_path)


def test_few_and_known_are_the_plugins_that_a_check_is_kept_to() -> None:
    assert {name for few in FOR_FEW.values() for name in few} <= set(RIGHT_VARIANTS)
    assert set(FOR_FEW) <= set(CHEAP)


@right_variants
def test_what_is_unusual_and_right_fails_no_check(name: str, tmp_path: Path) -> None:
    checks = [check for check in CHEAP if name in FOR_FEW.get(check, RIGHT_VARIANTS)]
    assert_right(results(name, RIGHT_VARIANTS[name], tmp_path, checks))


@pytest.mark.exhaustive
@wrong_plugins
def test_a_wrong_plugin_fails_no_other_check_at_all(wrong: WrongPlugin, tmp_path: Path) -> None:
    assert_fails_as_meant(wrong, results(wrong.name, wrong.edits, tmp_path, EVERY), tmp_path)


@pytest.mark.exhaustive
@right_variants
def test_what_is_unusual_and_right_fails_no_check_at_all(name: str, tmp_path: Path) -> None:
    assert_right(results(name, RIGHT_VARIANTS[name], tmp_path, EVERY))
