"""Other people's models pass the checks without a false alarm, also while other programs keep every core busy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from archbench import read_results
from archbench.scaffold.package import WRAPS, package_files
from archbench.testing.isolation import LIMIT
from archbench.testing.plugin_lines import plugin_line
from installations import RunCLI
from small_runs import value, with_small_corpus

NANOGPT = Path(__file__).parent / "nanogpt" / "model.py"
"""As it was published: github.com/karpathy/nanoGPT, commit 3adf61e."""

MODELS = {
    "nanogpt": ("torch", ("nano",)),
    "litgpt": ("litgpt.model", ("nano",)),
    "x-transformers": ("x_transformers", ("nano",)),
    "transformers": ("transformers", ("nano", "gemma3", "gpt_neox", "olmoe")),
}
"""Library -> the module that it takes, the presets of its template."""

CASES = [(name, preset) for name, (_, presets) in MODELS.items() for preset in presets]


@pytest.fixture
def _busy() -> Iterator[None]:
    """Two programs a core that never rest."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for spinner in spinners:
        spinner.kill()
        spinner.wait()


def wrapped(library: str, cli: RunCLI, place: Path) -> Path:
    """The package ``mine`` that ``archbench new mine --wrap LIBRARY`` writes into the empty folder ``place``."""
    pytest.importorskip(MODELS[library][0], reason=f"{library} is not installed")
    place.mkdir()
    done = cli("new", "mine", "--wrap", library, cwd=place)
    assert done.returncode == 0, done.stderr
    if library == "nanogpt":
        (command,) = (line for line in done.stdout.splitlines() if "curl" in line)
        shutil.copy(NANOGPT, place / "mine" / re.findall(r"-o (\S+)", command)[0])
    return place / "mine"


def assert_no_alarm(cli: RunCLI, place: Path, library: str, preset: str, *more: object) -> None:
    package = wrapped(library, cli, place)
    module = package / "archbench_mine.py"
    done = cli("check", "mine", "--plugin", module, "--preset", preset, "--json", *more, cwd=package)
    *checks, last = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert {line["status"] for line in checks} <= {"passed", "noted", "not applicable"}
    assert last["conforms"] is True
    for line in checks:
        print(f"{library} {preset}: {line['check']} {line['status']}, {line['seconds']:.1f} s: {line['evidence']}")


@pytest.mark.parametrize("library", WRAPS)
def test_a_wrap_is_a_package_that_needs_its_library_and_carries_what_it_imports(library: str) -> None:
    written = package_files("a-1-b", wrap=WRAPS[library])
    for path, text in written.items():
        assert not [spelling for spelling in ("my-arch", "my_arch", "MyArch") if spelling in text], path
    settings = tomllib.loads(written["pyproject.toml"])
    needed, modules = settings["project"]["dependencies"], settings["tool"]["setuptools"]["py-modules"]
    if library == "nanogpt":
        assert (needed, modules) == (["archbench"], ["archbench_a_1_b", "archbench_a_1_b_model"])
        assert "archbench_a_1_b_model.py" in written["README.md"]
        assert "archbench_a_1_b_model.py" in written["archbench_a_1_b.py"]
    else:
        assert modules == ["archbench_a_1_b"]
        assert [re.split(">=", one)[0] for one in needed] == ["archbench", library]


def test_an_unknown_library_or_two_origins_are_refused_before_anything_is_written(cli: RunCLI, tmp_path: Path) -> None:
    for options, culprit in ((["--wrap", "litgtp"], "litgpt"), (["--wrap", "litgpt", "--from", "gpt1"], "--from")):
        done = cli("new", "mine", *options, cwd=tmp_path)
        assert done.returncode == 2
        assert culprit in done.stderr
        assert not (tmp_path / "mine").exists()


def test_without_nanogpts_file_the_check_says_where_to_get_it(cli: RunCLI, tmp_path: Path) -> None:
    assert cli("new", "mine", "--wrap", "nanogpt", cwd=tmp_path).returncode == 0
    done = cli("check", "mine", "--plugin", "mine/archbench_mine.py", cwd=tmp_path)
    assert done.returncode == 9
    said = "".join(done.stdout.split())
    assert "archbench_mine_model.py" in said
    assert "README.md" in said


@pytest.mark.parametrize("library", ["nanogpt", "transformers"])
def test_a_wrap_as_written_gives_logits_and_decodes_what_a_whole_pass_would(
    library: str, cli: RunCLI, tmp_path: Path
) -> None:
    package = wrapped(library, cli, tmp_path / "empty")
    checks = [option for name in ("hooks", "logits", "cached_decode") for option in ("--check", name)]
    done = cli("check", "mine", "--plugin", package / "archbench_mine.py", *checks, "--json")
    assert done.returncode == 0, done.stderr
    found = {line["check"]: line["status"] for line in map(json.loads, done.stdout.splitlines()) if "check" in line}
    assert found == {"hooks": "passed", "logits": "passed", "cached_decode": "passed"}


def test_a_failure_inside_a_library_names_its_line_and_the_plugins() -> None:
    torchs, librarys, own = ("/site-packages/torch/a.py", 1), ("/site-packages/lib/masks.py", 7), ("/my_arch.py", 3)
    assert plugin_line([torchs, librarys, own]) == " (/my_arch.py:3: ; in lib/masks.py:7: )"
    assert plugin_line([torchs, own, librarys]) == " (/my_arch.py:3: )", "what calls the plugin is not at fault"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_other_peoples_models_pass(name: str, preset: str, cli: RunCLI, tmp_path: Path) -> None:
    assert_no_alarm(cli, tmp_path / "empty", name, preset)


@pytest.mark.slow
@pytest.mark.usefixtures("_busy")
@pytest.mark.parametrize(("name", "preset"), [("nanogpt", "nano"), ("transformers", "olmoe")])
def test_a_busy_machine_is_no_fault_of_theirs(name: str, preset: str, cli: RunCLI, tmp_path: Path) -> None:
    assert_no_alarm(cli, tmp_path / "empty", name, preset, "--limit", LIMIT / 2)


@pytest.mark.slow
def test_one_is_measured_from_training_to_decoding(tmp_path: Path, cli: RunCLI) -> None:
    module = wrapped("transformers", cli, tmp_path / "empty") / "archbench_mine.py"
    with_small_corpus(tmp_path)
    small = ["--profile", "smoke", "--corpus", "small.txt", "--steps", "2", "--batch-size", "2", "--threads", "1"]
    done = cli("run", "mine", "--plugin", module, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cumulative_length" in done.stderr, "the note of the checks"
    frame = read_results(tmp_path / "results")
    assert value(frame, "train", "flops_counted_on") == 1
    assert (
        value(frame, "decode", "cache_bytes_per_token") == 2 * 2 * 2 * 8 * 4
    )  # L layers, keys and values, G, D, bytes
    found = json.loads(next((tmp_path / "results").glob("**/check.json")).read_text())["results"]
    assert {result["name"]: result["status"] for result in found}["state_bytes"] == "noted"
