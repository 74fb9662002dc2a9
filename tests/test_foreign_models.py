"""Other people's models pass the checks without a false alarm, also while other programs keep every core busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from archbench import read_results
from archbench.testing.isolation import LIMIT
from archbench.testing.plugin_lines import plugin_line
from installations import RunCLI
from small_runs import value, with_small_corpus

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


def test_a_failure_inside_a_library_names_its_line_and_the_plugins() -> None:
    torchs, librarys, own = ("/site-packages/torch/a.py", 1), ("/site-packages/lib/masks.py", 7), ("/my_arch.py", 3)
    assert plugin_line([torchs, librarys, own]) == " (/my_arch.py:3: ; in lib/masks.py:7: )"
    assert plugin_line([torchs, own, librarys]) == " (/my_arch.py:3: )", "what calls the plugin is not at fault"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_other_peoples_models_pass(name: str, preset: str, cli: RunCLI) -> None:
    assert_no_alarm(cli, name, preset)


@pytest.mark.slow
@pytest.mark.usefixtures("_busy")
@pytest.mark.parametrize(("name", "preset"), [("nanogpt", "nano"), ("transformers", "olmoe")])
def test_a_busy_machine_is_no_fault_of_theirs(name: str, preset: str, cli: RunCLI) -> None:
    assert_no_alarm(cli, name, preset, "--limit", LIMIT / 2)


@pytest.mark.slow
def test_one_is_measured_from_training_to_decoding(tmp_path: Path, cli: RunCLI) -> None:
    pytest.importorskip("transformers")
    with_small_corpus(tmp_path)
    small = ["--profile", "smoke", "--corpus", "small.txt", "--steps", "2", "--batch-size", "2", "--threads", "1"]
    done = cli("run", "transformers", "--plugin", FOLDER / "transformers_models.py", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cumulative_length" in done.stderr, "the note of the checks"
    frame = read_results(tmp_path / "results")
    assert value(frame, "train", "flops_counted_on") == 1
    assert (
        value(frame, "decode", "cache_bytes_per_token") == 2 * 2 * 2 * 8 * 4
    )  # L layers, keys and values, G, D, bytes
    found = json.loads(next((tmp_path / "results").glob("**/check.json")).read_text())["results"]
    assert {result["name"]: result["status"] for result in found}["state_bytes"] == "noted"
