"""A run file is everything a run depends on; options override it; what is wrong with it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from installations import RunCLI

RUN_FILE = """
architecture = "gpt2"
profile = "smoke"
seed = 7
phases = ["train"]
threads = 1
out = "elsewhere"

[overrides]
context_length = 16
n_layer = 1

[data]
corpus = "small.txt"

[training]
steps = 2
batch_size = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.txt").write_text("To be, or not to be, that is the question:\n" * 80)
    (tmp_path / "run.toml").write_text(RUN_FILE)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (None, [], "run.toml"),
        ("architecture = gpt2", [], "run.toml"),
        ("profile = 'smoke'", [], "archbench run"),
        (
            "architecture = 'gpt2'\n[training]\nstep = 3",
            [],
            "'steps'",
        ),
        ("architecture = 'gpt2'\n[overrides]\nn_head = 5", ["--phases", "train"], "heads"),
    ],
    ids=["missing", "no TOML", "no architecture", "no such field", "no such size"],
)
def test_what_is_wrong_with_a_run_file_is_said_in_one_line(
    cli: RunCLI, folder: Path, text: str | None, arguments: list[str], said: str
) -> None:
    (folder / "run.toml").unlink()
    if text is not None:
        (folder / "run.toml").write_text(text)
    done = cli("run", "--file", "run.toml", *arguments, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_runs_of_a_file_end_in_one_table_and_options_override_it(cli: RunCLI, folder: Path) -> None:
    options = ["--phases", "train", "--tokens", "96", "--set", "d_model=96", "--set", "n_head=4", "--unchecked"]
    done = cli("run", "gpt2", "llama", "--file", "run.toml", *options, "--set", "vocab_size=300", cwd=folder)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("parameters") :].splitlines()
    assert [line.split()[0] for line in table[1:3]] == ["gpt2", "llama"]
    assert "chance" in done.stdout, "of one seed"
    for stored in (folder / "elsewhere").glob("*.json"):
        config = json.loads(stored.read_text())["run"]
        assert (config["seed"], config["phases"], config["threads"]) == (7, ["train"], 1)
        assert config["overrides"]["n_layer"] == 1
        assert config["overrides"]["d_model"] == "96"
        training = config["training"]
        assert (training["tokens"], training["steps"], training["batch_size"]) == (96, None, 3)


def test_all_is_every_architecture_there_is(cli: RunCLI, folder: Path) -> None:
    """Told from what cannot be run: a corpus that is not there ends each of them."""
    done = cli("run", "all", "--file", "run.toml", "--corpus", "missing.txt", cwd=folder)
    assert done.returncode == 4, done.stderr
    failed = done.stderr.splitlines()[-1]
    for name in ("gpt1", "gpt2", "llama", "mistral", "mixtral", "gemma", "mamba2", "gated-deltanet", "rwkv7", "hybrid"):
        assert f"{name} (exit code 4)" in failed
