"""Built-in architectures pass every check, are of comparable size, and keep as many bytes for decoding as in theory."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import archbench
from archbench.measure.flops import measured_cache_bytes
from archbench.testing import ArchitectureChecks
from archbench.testing.checks import CHECKS
from archbench.testing.evaluation import Check, selected
from archbench.testing.suite import Examination

ROOT = Path(__file__).parents[1]
NAMES = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["archbench"])
names = pytest.mark.parametrize("name", NAMES)
(COMPILE,) = selected(["compile"], CHECKS)


SHALLOW = {"hybrid": {"n_layer": 3}}
"""What keeps a layer of each kind; the others have two layers alike."""
WHOLE = ("hybrid",)
"""Attention and a recurrence: every check by default; of the others a third, other ones each time."""


class TestConformance(ArchitectureChecks):
    """Checks on two layers of the preset ``nano`` of each, at a context of a chunk and a half.

    Every check of every one, in all its layers, is in TestEveryCheckOfEveryPreset; ``compile`` is tested below.
    """

    @classmethod
    def examinations(cls, config: pytest.Config) -> dict[str, Examination]:
        shallow = {name: SHALLOW.get(name, {"n_layer": 2}) for name in NAMES}
        return {f"{name}-": Examination(name, overrides={"context_length": 96, **shallow[name]}) for name in NAMES}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if metafunc.function.__name__ == "test_conformance":
            pairs = [
                pytest.param(examination, check, id=prefix + check.name)
                for number, (prefix, examination) in enumerate(self.examinations(metafunc.config).items())
                for turn, check in enumerate(CHECKS)
                if check is not COMPILE and (examination.architecture in WHOLE or (turn + number) % 3 == 0)
            ]
            metafunc.parametrize(("examination", "check"), pairs)


@pytest.mark.slow
class TestEveryCheckOfEveryPreset(ArchitectureChecks):
    @classmethod
    def examinations(cls, config: pytest.Config) -> dict[str, Examination]:
        return {f"{name}-": Examination(name, overrides={"context_length": 96}) for name in NAMES}

    def test_conformance(self, examination: Examination, check: Check, request: pytest.FixtureRequest) -> None:
        if check is COMPILE:
            pytest.skip("test_one_block_of_each_kind_compiles")
        super().test_conformance(examination, check, request)


def assert_compiles(name: str, **overrides: Any) -> None:
    result = Examination(name, overrides=overrides).result(COMPILE)
    assert result.status == "passed", result.evidence


@pytest.mark.parametrize(
    "name", [name if name == "gpt1" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_one_block_of_each_kind_compiles(name: str) -> None:
    """By default of one, as tracing takes longest of all checks; tests/test_ssd.py compiles a recurrence."""
    assert_compiles(name, **({"n_layer": 2, "pattern": "ra"} if name == "hybrid" else {"n_layer": 1}))


@pytest.mark.exhaustive
@names
def test_the_whole_preset_compiles(name: str) -> None:
    assert_compiles(name)


def test_ten_architectures_are_built_in() -> None:
    assert len(NAMES) == 10
    assert {entry.name for entry in archbench.available() if entry.package == "archbench"} == set(NAMES)


def code_lines(source: str) -> set[int]:
    """Lines that hold code: no blank ones, comments or docstrings."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(source.splitlines(), start=1)
    return {number for number, line in lines if line.strip() and not line.lstrip().startswith("#")} - docstrings


@names
def test_each_has_the_three_presets_and_is_one_readable_file(name: str) -> None:
    info = archbench.load(name).info
    assert {"nano", "small", "paper"} <= set(info.presets)
    source = (ROOT / "plugins" / f"{name.replace('-', '_')}.py").read_text()
    published = source[source.index("\ndef generate(") :]  # the last hook, then names and fields elsewhere
    lines, of_published = len(code_lines(source)), len(code_lines(published))
    assert lines - of_published <= 200, "a reader should see the whole story"
    assert of_published <= 110, "the published form, in both directions"


@names
def test_nanos_are_of_one_size_so_that_their_table_compares_architectures(name: str) -> None:
    architecture = archbench.load(name)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in architecture.build(architecture.config("nano")).parameters())
    # The experts of mixtral that a token does not visit come on top.
    assert 1.0e6 < parameters < (2.4e6 if name == "mixtral" else 1.3e6)


FLOAT = 4
"""Bytes of a float32."""


def _keys_and_values(config: Any, layers: int, heads: int, width: int, positions: int) -> int:
    return 2 * layers * heads * width * positions * FLOAT


THEORY: dict[str, Callable[[Any, int], int]] = {
    "gpt1": lambda c, T: _keys_and_values(c, c.n_layer, 1, c.d_model, T),
    "gpt2": lambda c, T: _keys_and_values(c, c.n_layer, 1, c.d_model, T),
    "llama": lambda c, T: _keys_and_values(c, c.n_layer, c.n_kv_head, c.d_head, T),
    "mistral": lambda c, T: _keys_and_values(c, c.n_layer, c.n_kv_head, c.d_head, min(T, c.window)),
    "mixtral": lambda c, T: _keys_and_values(c, c.n_layer, c.n_kv_head, c.d_head, min(T, c.window or T)),
    "gemma": lambda c, T: _keys_and_values(c, c.n_layer, c.n_kv_head, c.d_head, T),
    # States, and the K - 1 positions before the next that a convolution sees; or the position before, twice.
    "mamba2": lambda c, T: (
        c.n_layer
        * (c.n_head * c.d_state * c.d_head + (c.d_conv - 1) * (c.n_head * c.d_head + 2 * c.n_group * c.d_state))
        * FLOAT
    ),
    "gated-deltanet": lambda c, T: (
        c.n_layer * c.n_head * (c.d_head * c.d_value + (c.d_conv - 1) * (2 * c.d_head + c.d_value)) * FLOAT
    ),
    "rwkv7": lambda c, T: c.n_layer * (c.d_model * c.d_head + 2 * c.d_model) * FLOAT,
    "hybrid": lambda c, T: (
        _keys_and_values(c, c.mixers.count("a"), c.n_kv_head, c.d_model // c.n_head, min(T, c.window))
        + c.mixers.count("r") * c.d_conv * c.d_recurrent * FLOAT
    ),
}


@pytest.mark.parametrize(
    ("name", "T"),
    [
        pytest.param(name, T, marks=[] if T == 33 or (name == "mistral" and T < 33) else [pytest.mark.slow])
        for name in THEORY
        for T in (1, 31, 32, 33, 128)
    ],
)
def test_state_bytes_are_what_theory_says_and_what_is_allocated(name: str, T: int) -> None:
    architecture = archbench.load(name)
    config = architecture.config("nano")
    assert architecture.state_bytes(config, T) == THEORY[name](config, T)
    assert measured_cache_bytes(architecture.build(config), 1, T) == THEORY[name](config, T)
