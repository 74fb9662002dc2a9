"""A damaged file of a run ends the command that reads it in an error that names the file, with its exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from archbench.config import DataConfig, RunConfig
from archbench.errors import CheckpointError
from archbench.files.seal import unsealed
from archbench.runs.folder import open_run
from archbench.runs.models import initial_model, load_architecture
from archbench.runs.preparation import start
from command_line import archbench
from gguf_files import published_llama, write_llama
from small_runs import SMALL, with_small_corpus

DEEP = "[" * 200_000
Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one whole, checked run in ``results``."""
    folder = with_small_corpus(tmp_path_factory.mktemp("finished"))
    done = archbench("run", "gpt1", *SMALL, "--phases", "train,quality", "--tokenizer", "bpe:300", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it as earlier archbenches left one, without seals; its results can be recovered from its folder."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    next((folder / "results").glob("*.parquet")).unlink()
    run = run_of(folder)
    for file in (run / "config.json", run / "check.json", *run.glob("checkpoints/*/manifest.json")):
        file.write_text(json.dumps(unsealed(json.loads(file.read_text()))))
    for file in run.glob("rows-*.jsonl"):
        rows = unsealed([json.loads(line) for line in file.read_text().splitlines()])
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield folder
    shutil.rmtree(folder)


def run_of(folder: Path) -> Path:
    return min((folder / "results").glob("*/config.json")).parent


def resumed(folder: Path) -> Any:
    return archbench("run", "gpt1", "--resume", "last", "--quiet", cwd=folder)


def generated(folder: Path) -> Any:
    return archbench("generate", "gpt1", "--seed", "1", "--max-new-tokens", "3", cwd=folder)


def refused(done: Any, file: Path, code: int, *said: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert file.name in done.stderr
    for part in said:
        assert part in done.stderr


def changed(file: Path, *path: str, to: Any) -> None:
    """Replace the value at ``path``; ``...`` removes it."""
    content = json.loads(file.read_text())
    place = content
    for part in path[:-1]:
        place = place[part]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    file.write_text(json.dumps(content))


def test_a_run_of_an_earlier_archbench_has_its_results_again_from_its_folder(finished: Path, copied: Path) -> None:
    done = resumed(copied)
    assert done.returncode == 0, done.stderr
    assert generated(copied).stdout == generated(finished).stdout


@pytest.mark.parametrize("content", ["", "nonsense", DEEP, "[]", "\x00" * 100, '{"run": {}}', "1" * 10_000])
def test_what_is_no_configuration_is_named(copied: Path, content: str) -> None:
    file = run_of(copied) / "config.json"
    file.write_text(content)
    refused(generated(copied), file, 7, "damaged")


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("run", "seed"), -1, "RunConfig.seed"),
        (("run", "training", "steps"), "many", "TrainingConfig.steps"),
        (("run", "training", "speed_of_light"), 3, "TrainingConfig.speed_of_light"),
        (("run", "profile"), ["quick"], "profile"),
        (("run", "training"), [1], "RunConfig.training"),
        (("run",), None, "run"),
        (("run_id",), "../../elsewhere", "another run"),
        (("run_id",), ..., "run_id"),
        (("model", "context_length"), -4, "model.context_length"),
        (("model", "vocab_size"), 1e400, "model.vocab_size"),
        (("model", "n_layer"), "some", "n_layer"),
        (("model", "n_wheels"), 4, "n_wheels"),
        (("model",), [], "model"),
        (("facts", "versions"), "2.13", "facts.versions"),
        (("facts", "versions", "torch_version"), 2.13, "facts.versions.torch_version"),
        (("facts", "plugin_package"), None, "facts.plugin_package"),
        (("facts",), ..., "facts"),
        (("more",), 1, "more"),
    ],
)
def test_a_wrong_field_of_a_configuration_is_named(copied: Path, path: tuple[str, ...], to: Any, said: str) -> None:
    file = run_of(copied) / "config.json"
    changed(file, *path, to=to)
    refused(generated(copied), file, 7, said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 3"),
        (DEEP, "line 3"),
        ("[1]", "valid dict"),
        ('{"metric": "loss"}', "phase"),
        ('{"phase": "train", "metric": "loss", "value": "low"}', "value"),
        ('{"phase": "train", "metric": "loss", "repeat": 1e400}', "repeat"),
        ('{"phase": "train", "metric": "loss", "repeat": 100000000000000000000000}', "repeat"),
        ('{"phase": "train", "metric": "loss", "mood": 1.0}', "mood"),
    ],
)
def test_a_wrong_row_is_named(copied: Path, line: str, said: str) -> None:
    file = run_of(copied) / "rows-train.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    refused(resumed(copied), file, 7, said)


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("results",), None, "results"),
        (("results",), [{"name": "causality"}], "results.0.status"),
        (("level",), "two", "level"),
        (("running",), [], "running"),
    ],
)
def test_a_wrong_finding_of_the_checks_is_named(copied: Path, path: tuple[str, ...], to: Any, said: str) -> None:
    file = run_of(copied) / "check.json"
    changed(file, *path, to=to)
    refused(resumed(copied), file, 7, said)


def test_a_row_that_results_cannot_hold_is_named(copied: Path) -> None:
    file = run_of(copied) / "rows-quality.jsonl"
    lines = file.read_text().splitlines()
    row = {name: value for name, value in json.loads(lines[-1]).items() if name != "threads"}
    file.write_text("\n".join([*lines[:-1], json.dumps(row)]) + "\n")
    refused(resumed(copied), file, 7, "threads", f"row {len(lines) - 1}")


def test_a_run_copied_to_another_name_is_none_of_that_name(copied: Path) -> None:
    other = run_of(copied).with_name("20300101T000000-abcdef")
    shutil.copytree(run_of(copied), other)
    for read in (generated, resumed):
        refused(read(copied), other / "config.json", 7, "another run", other.name, run_of(copied).name)


def test_weights_that_change_between_two_phases_are_refused(tmp_path: Path) -> None:
    weights = write_llama(tmp_path / "model.gguf", published_llama())
    data = DataConfig(corpus=str(with_small_corpus(tmp_path) / "small.txt"), tokenizer="byte")
    config = RunConfig(architecture="llama", weights=str(weights), profile="smoke", phases=("quality", "decode"))
    run = open_run(tmp_path, start(config.override(data=data, out=str(tmp_path))).run_id)
    architecture, sizes = load_architecture(run)
    initial_model(run, architecture, sizes, torch.device("cpu"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.gguf: they have changed since the run began"):
        initial_model(run, architecture, sizes, torch.device("cpu"))


def test_findings_that_are_missing_are_named(copied: Path) -> None:
    file = run_of(copied) / "check.json"
    file.unlink()
    refused(resumed(copied), file, 7, "missing")


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("step",), "six", "step"),
        (("step",), 10**30, "manifest"),
        (("format",), 2, "format"),
        (("files",), {}, "model.safetensors"),
        (("files", "model.safetensors", "sha256"), None, "sha256"),
        (("files", "model.safetensors", "bytes"), 3, "checksum"),
    ],
)
def test_a_wrong_manifest_of_a_checkpoint_is_named(copied: Path, path: tuple[str, ...], to: Any, said: str) -> None:
    file = max((run_of(copied) / "checkpoints").glob("step-*")) / "manifest.json"
    changed(file, *path, to=to)
    refused(generated(copied), file.parent, 6, said)


def test_one_letter_of_a_saved_tokenizer_does_not_pass(copied: Path) -> None:
    file = run_of(copied) / "tokenizer" / "tokenizer.json"
    text = file.read_text()
    file.write_text(text.replace('"the"', '"teh"') if '"the"' in text else text.replace('"e"', '"E"', 1))
    refused(generated(copied), file, 4, "checksum")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("architecture = 5", "architecture"),
        ('device = ["cpu"]', "device"),
        ("profile = {}", "profile"),
        ('seed = "one"', "seed"),
        ("plugins = 3", "plugins"),
        ("data = 4", "data"),
        ("training = []", "training"),
        ("[training\nsteps = 3", "TOML"),
        ("a = " + DEEP, "TOML"),
    ],
)
def test_a_run_file_of_wrong_types_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    refused(archbench("run", "gpt1", "--file", file, cwd=tmp_path), file, 2, said)


@pytest.mark.parametrize("value", [DEEP, "1" * 5000])
def test_a_value_that_json_cannot_hold_is_a_text(tmp_path: Path, value: str) -> None:
    done = archbench("run", "gpt1", "--config", f"training.steps={value}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-500:]
