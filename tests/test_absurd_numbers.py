"""Numbers, nesting and patterns that no machine can serve end as errors at once, before anything is measured."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from archbench.cli.app import main
from archbench.config import KernelConfig, RunConfig
from archbench.errors import ConfigError, ResourceError, StorageError, UsageError
from archbench.files.loader import read_toml
from archbench.plugin import growth
from archbench.plugin.growth import check_room
from archbench.plugin.registry import load
from forked_children import ForkedCommand
from small_runs import with_small_corpus

HUGE = ["100000000000000000", "-1", "1" * 400]
MORE = ["1000000000000", "1e30", "1e400", "nan", "inf", "1" * 5000]
"""For the first option of each command; the others go the same way."""
OPTIONS: dict[str, list[str]] = {
    "run gpt1": [
        "--batch-size", "--steps", "--threads", "--accumulation", "--seed", "--config=training.validate_every",
        "--config=speed.repeats", "--config=speed.batch_sizes", "--config=speed.new_tokens", "--config=quality.stride",
        "--config=time_limit", "--config=training.betas", "--set=n_layer", "--set=context_length", "--set=d_model",
    ],
    "compare gpt1 llama": ["--seeds", "--jobs", "--steps", "--batch-size", "--threads"],
    "scale gpt1": ["--sizes", "--budgets", "--seeds", "--jobs", "--threads"],
    "probe gpt1": ["--seeds", "--jobs", "--threads", "--updates", "--examples"],
    "kernels": ["--repeats", "--threads", "--lengths", "--losses", "--groups", "--windows", "--batch-size", "--heads"],
    "show gpt1": ["--set=n_layer", "--set=d_model", "--set=d_ff", "--set=vocab_size", "--set=context_length"],
    "regress HEAD HEAD": ["--rounds", "--max-rounds", "--limit"],
    "check gpt1": ["--seed", "--limit"],
}  # fmt: skip


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error that the command ends with."""
    code = main(arguments)
    shown = capsys.readouterr()
    assert code in (2, 3, 5, 7), f"{' '.join(arguments)[:200]}: {code}: {shown.err[-400:]}"
    assert "Error" in shown.err, shown.err[:200]
    assert shown.out == ""
    assert len(shown.err) < 16_000
    return shown.err


@pytest.mark.parametrize("command", OPTIONS)
def test_an_absurd_number_is_an_error_before_anything_begins(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = OPTIONS[command]
    for option, value in [*itertools.product(others, HUGE), *((first, value) for value in (*HUGE, *MORE))]:
        name, equals, field = option.partition("=")
        words = [*command.split(), *([name, f"{field}={value}"] if equals else [f"{name}={value}"])]
        error_of(words, capsys)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}


def test_thousands_of_seeds_and_of_cases_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [word for seed in range(5000) for word in ("--seed", str(seed))]
    assert "5,000" in error_of(["run", "gpt1", *seeds], capsys)
    many = tuple(range(1, 101))
    with pytest.raises(ConfigError, match="1,000,001 cases"):
        KernelConfig(lengths=many, groups=(1,) * 100, windows=many, losses=((1, 1, 1),), query_heads=8)


@pytest.mark.parametrize("name", ["gpt1", "mixtral", "hybrid", "mamba2"])
def test_a_model_of_very_many_tensors_is_refused_while_it_is_built(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "MOST_TENSORS", 500)
    assert "500" in error_of(["show", name, "--set", "n_layer=9999"], capsys)


def test_a_model_larger_than_the_memory_is_shown_but_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = load("gpt1")
    monkeypatch.setattr(growth.machine, "memory_bytes", lambda device: 1 << 20)
    assert main(["show", "gpt1"]) == 0
    with pytest.raises(ResourceError, match=r"take [\d.]+ MiB, and cpu has 1 MiB"):
        architecture.build(architecture.config("small"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--batch-size", "16000000", "--set", "context_length=512"], "122 GiB"),
        (["--config", "speed.batch_sizes=[16000000]", "--phases", "decode"], "16,000,000 sequences"),
    ],
    ids=["training", "decoding"],
)
def test_a_run_that_cannot_fit_is_refused_before_it_measures(more: list[str], said: str, tmp_path: Path) -> None:
    options = [
        "--profile",
        "smoke",
        "--corpus",
        "small.txt",
        "--steps",
        "1",
        "--threads",
        "1",
        "--quiet",
        "--unchecked",
    ]
    done = ForkedCommand("run", "gpt1", *options, *more, cwd=with_small_corpus(tmp_path)).finished()
    assert done.returncode == 5, done.stderr
    assert said in done.stderr
    assert "GiB" in done.stderr.partition("has ")[2], "both numbers"
    assert list((tmp_path / "results").glob("*/rows-*")) == []


def test_kernel_inputs_that_cannot_fit_are_refused(tmp_path: Path) -> None:
    done = ForkedCommand(
        "kernels", "--device", "cpu", "--operations", "loss", "--losses", "2000000000x100000x2000000000", "--quiet",
        cwd=tmp_path,
    ).finished()  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "loss N 2000000000" in done.stderr


def test_what_needs_more_than_there_is_names_both_numbers() -> None:
    check_room("it", "takes", 1, "cpu")
    with pytest.raises(ResourceError, match=r"takes 909 TiB, and cpu has \d"):
        check_room("it", "takes", 1e15, "cpu")


NESTED = [
    ["--config", "training." + "a." * 5000 + "a=1"],
    ["--config", "overrides." + "a." * 5000 + "a=1"],
    ["--config", "." * 5000 + "=1"],
    ["--config", "training.betas=" + "[" * 100_000],
    ["--config", "training.betas=" + "[" * 900 + "]" * 900],
    ["--config", "training.betas=" + '{"a":' * 900 + "1" + "}" * 900],
    ["--config", "training.steps=" + "9" * 5000],
    ["--set", "a" * 100_000 + "=1"],
]


@pytest.mark.parametrize("words", NESTED, ids=lambda words: words[1][:24])
def test_deep_and_long_options_are_errors(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error_of(["run", "gpt1", *words], capsys)


@pytest.mark.parametrize(
    "condition",
    [
        "batch_size=" + "9" * 30,
        "batch_size=" + "9" * 5000,
        "value=1e400x",
        "time_utc=99999-01-01",
        "a" * 100_000,
        "seed=nan",
    ],
    ids=lambda condition: condition[:20],
)
def test_absurd_conditions_are_errors(condition: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parents[1] / "results" / "reference" / "20261123T112407-da218d.parquet"
    error_of(["results", str(file), "--where", condition], capsys)


@pytest.mark.parametrize("pattern", ["**/*/**/*/**/*/**", "**/" * 2000 + "x", "a" * 5000, "\0", "[" * 5000])
def test_patterns_that_explode_are_errors(pattern: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error_of(["results", f"{tmp_path}/{pattern}"], capsys)


TOML: dict[str, bytes] = {
    "50,000 dots": b"a" + b".a" * 50_000 + b" = 1",
    "50,000 quoted dots": b'"a \\" b"' + b'."a"' * 50_000 + b" = 1",
    "50,000 dots of a table": b"[a" + b".a" * 50_000 + b"]",
    "50,000 dots inside": b"x = {a" + b".a" * 50_000 + b" = 1}",
    "100,000 brackets": b"x = " + b"[" * 100_000,
    "10 MB": b"# " + b"x" * 10_000_000,
    "twice": b"seed = 1\nseed = 2\n",
    "not UTF-8": b"\xff\xfe",
    "number of 5,000 digits": b"seed = " + b"9" * 5000,
}


@pytest.mark.parametrize("content", TOML.values(), ids=TOML)
def test_a_hostile_run_file_is_an_error(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    assert "run.toml" in error_of(["run", "gpt1", "--file", str(tmp_path / "run.toml")], capsys)


@pytest.mark.parametrize(
    "line",
    ["device = 2026-01-01", "profile = []", "architecture = 3", "plugins = 5", "plugins = [1]", "data = 5",
     "weights = 1", "training = [1]", "seed = 1e400", "phases = {}", "out = 07:00:00", "threads = nan",
     "trackers = [[]]", "overrides = 1"],
)  # fmt: skip
def test_a_wrong_type_in_a_run_file_names_its_field(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(line)
    assert line.partition(" ")[0] in error_of(["run", "--file", str(tmp_path / "run.toml")], capsys)


def test_a_project_file_of_others_is_bounded_and_checked(tmp_path: Path) -> None:
    from archbench.plugin.discovery import project_plugin

    file = tmp_path / "pyproject.toml"
    for content in (b"project = 5", b"[project]\nentry-points = 3"):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="project"):
            project_plugin("gpt1", tmp_path)
    file.write_bytes(TOML["50,000 dots"])
    with pytest.raises(UsageError, match="64 parts"):
        project_plugin("gpt1", tmp_path)


def test_honest_toml_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('a.b."c d".e = "1.2.3"\n[t]\ndate = 2026-01-01\n')
    assert read_toml(file, next_step="-")["a"]["b"]["c d"]["e"] == "1.2.3"
    with pytest.raises(StorageError, match="larger than 4 bytes"):
        read_toml(file, limit=4, next_step="-")


def test_every_profile_is_within_the_bounds() -> None:
    for profile in ("smoke", "quick", "standard", "paper"):
        RunConfig(architecture="gpt1", profile=profile)


@pytest.mark.slow
def test_an_absurd_depth_takes_little_memory_and_time_in_a_real_process() -> None:
    """Peak memory beyond importing torch, bytes; the parameters are counted as they come."""
    code = (
        "import resource, json, sys; from archbench.cli.app import main; from archbench.plugin.registry import load;"
        "import torch; load('gpt1').config('nano'); peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = peak(); code = main(['show', 'gpt1', '--set', 'n_layer=10000']);"
        "print(json.dumps([code, peak() - before]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    exit_code, kibibytes = json.loads(done.stdout)
    assert exit_code == 2, done.stderr
    assert "80,000 parameters and buffers" in done.stderr
    assert kibibytes < 1 << 20
