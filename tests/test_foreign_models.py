"""Other people's models pass the checks without a false alarm, also while other programs keep every core busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from archbench.testing.isolation import LIMIT
from installations import RunCLI

FOLDER = Path(__file__).parent / "foreign_plugins"
MODELS = {
    "nanogpt": ("nanogpt_gpt.py", "torch", ("nano",)),
    "litgpt": ("litgpt_gpt.py", "litgpt.model", ("nano",)),
    "x-transformers": ("x_transformers_decoder.py", "x_transformers", ("nano",)),
    "transformers": ("transformers_models.py", "transformers", ("nano", "gemma3", "gpt_neox", "olmoe")),
}
"""Architecture -> its file, the package that it needs, its presets."""

CASES = [(name, preset) for name, (_, _, presets) in MODELS.items() for preset in presets]


@pytest.fixture
def _busy() -> Iterator[None]:
    """Two programs a core that never rest."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for spinner in spinners:
        spinner.kill()
        spinner.wait()


def assert_no_alarm(cli: RunCLI, name: str, preset: str, *more: object) -> None:
    file, package, _ = MODELS[name]
    pytest.importorskip(package)
    done = cli("check", name, "--plugin", FOLDER / file, "--preset", preset, "--json", *more)
    *checks, last = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert {line["status"] for line in checks} <= {"passed", "noted", "not applicable"}
    assert last["conforms"] is True
    for line in checks:
        print(f"{name} {preset}: {line['check']} {line['status']}, {line['seconds']:.1f} s: {line['evidence']}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_other_peoples_models_pass(name: str, preset: str, cli: RunCLI) -> None:
    assert_no_alarm(cli, name, preset)


@pytest.mark.slow
@pytest.mark.usefixtures("_busy")
@pytest.mark.parametrize(("name", "preset"), [("nanogpt", "nano"), ("transformers", "olmoe")])
def test_a_busy_machine_is_no_fault_of_theirs(name: str, preset: str, cli: RunCLI) -> None:
    assert_no_alarm(cli, name, preset, "--limit", LIMIT / 2)
