"""``archbench results`` shows people medians and spread, and gives programs every row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import archbench
from archbench.results.store import write_run
from installations import RunCLI

COMMON = {
    "schema_version": 1,
    "architecture": "gpt1",
    "plugin_package": "archbench",
    "plugin_version": "0.1.0",
    "preset": "nano",
    "config_hash": "0123456789ab",
    "seed": 0,
    "device": "cpu",
    "device_name": "Some CPU",
    "dtype": "float32",
    "compile": False,
    "threads": 2,
    "world_size": 1,
    "parameters": 12345,
    "corpus": "shakespeare",
    "tokenizer": "byte",
    "archbench_version": "0.1.0",
    "torch_version": "2.13.0",
    "python_version": "3.11",
}


def rows() -> list[dict[str, Any]]:
    train = [{"phase": "train", "metric": "loss", "value": 4.0 - step, "repeat": step} for step in range(3)]
    case = {"phase": "decode", "metric": "seconds_per_token", "batch_size": 1, "prompt_length": 16}
    decode = [{**case, "value": seconds, "repeat": i} for i, seconds in enumerate((0.001, 0.002, 0.003, 0.004, 0.1))]
    return [*train, *decode, {"phase": "train", "metric": "mfu", "value": None}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five runs, a day apart; the newest is of the fifth."""
    out = tmp_path / "out"
    for day in range(1, 6):
        write_run(out, f"2026010{day}T000000-00000{day}", rows(), {}, COMMON)
    return out


def test_a_person_sees_median_quartiles_and_repeats_of_the_newest_runs_first(folder: Path, cli: RunCLI) -> None:
    shown = cli("results", folder).stdout
    lines = shown.splitlines()
    assert lines[0].startswith(
        "20260105T000000-000005  gpt1 nano, 12,345 parameters · shakespeare, byte · Some CPU, float32 · seed 0"
    )
    assert [line[:8] for line in lines if line.startswith("2026")] == ["20260105", "20260104", "20260103"]
    (decode,) = (line for line in lines[: lines.index("")] if "seconds_per_token" in line)
    assert decode.split() == ["decode", "seconds_per_token", "1", "×", "16", "3", "ms", "2", "–", "4", "ms", "5"]
    (loss,) = (line for line in lines[: lines.index("")] if " loss " in line)
    assert "2.0000 nats/token" in loss  # the last, not the median
    (mfu,) = (line for line in lines[: lines.index("")] if " mfu " in line)
    assert "–" in mfu  # null is no number
    assert "--limit 0" in shown


def test_programs_get_every_row_and_column_as_json_lines_and_csv(folder: Path, cli: RunCLI, tmp_path: Path) -> None:
    frame = archbench.read_results(folder)
    lines = [json.loads(line) for line in cli("results", folder, "--json").stdout.splitlines()]
    assert len(lines) == len(frame)
    assert list(lines[0]) == list(frame.columns)
    assert lines[8]["value"] is None
    done = cli("results", folder, "--csv", tmp_path / "all.csv")
    assert done.stdout == ""
    assert str(len(frame)) in done.stderr
    written = pd.read_csv(tmp_path / "all.csv")
    pd.testing.assert_series_equal(written.value, frame.value)
    assert pd.read_csv(io.StringIO(cli("results", folder, "--csv", "-").stdout)).equals(written)


def test_rows_and_runs_can_be_chosen(folder: Path, cli: RunCLI) -> None:
    lines = cli("results", folder, "--where", "phase=decode", "--limit", "2", "--json").stdout.splitlines()
    assert {json.loads(line)["phase"] for line in lines} == {"decode"}
    assert {json.loads(line)["run_id"][:8] for line in lines} == {"20260105", "20260104"}
    raw = cli("results", folder, "--raw", "--limit", "1", "--where", "phase=decode").stdout.splitlines()
    assert [line.split()[-2:] for line in raw[1:6]] == [[value, "ms"] for value in ("1", "2", "3", "4", "100")]
    none = cli("results", folder, "--where", "phase=decode", "--where", "metric=loss")
    assert none.stdout == f"No matching results in {folder}.\n", "each value is known, and no row has both"


def test_a_run_that_failed_says_so_in_a_line_and_an_unchecked_one_too(cli: RunCLI, tmp_path: Path) -> None:
    checks = [{"phase": "check", "metric": "causality", "value": 1.0}]
    failed = {"phase": "decode", "metric": "failed", "unit": "1", "status": "PhaseError: it took too long"}
    write_run(tmp_path, "20260101T000000-000001", [*checks, *rows()[:3], failed], {}, {**COMMON, "conformance": "1"})
    write_run(tmp_path, "20260102T000000-000002", rows(), {}, {**COMMON, "conformance": "unchecked"})
    unchecked, passed = cli("results", tmp_path).stdout.split("\n\n")
    assert "PhaseError: it took too long" in passed
    assert "failed" not in unchecked
    assert "(--unchecked)" in unchecked
    assert "(--unchecked)" not in passed
    assert "causality" not in passed, "a run's checks are shown when they are asked for"
    assert "causality" in cli("results", tmp_path, "--where", "phase=check").stdout
    raw = cli("results", tmp_path, "--raw", "--where", "phase=decode", "--where", "metric=failed").stdout
    assert "PhaseError: it took too long" in raw


@pytest.mark.parametrize(
    ("arguments", "code", "phrases"),
    [
        (["--where", "phse=decode"], 2, ["'phse'", "Did you mean 'phase'?"]),
        (
            ["--where", "phase=decode", "--where", "phase=decod", "--json"],
            2,
            ["phase=decod:", "mean 'decode'?", "train"],
        ),
        (["--where", "seed=77"], 2, ["seed=77:", "Known: 0"]),
        (["--where", "decode"], 2, ["COLUMN=VALUE"]),
        (["--where", "repeat=often"], 2, ["repeat=often", "not a int64"]),
        (["--csv", "/proc/no/such/folder.csv"], 7, ["cannot be written", "Choose another file"]),
    ],
)
def test_bad_input_is_one_paragraph(
    folder: Path, cli: RunCLI, arguments: list[str], code: int, phrases: list[str]
) -> None:
    done = cli("results", folder, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for phrase in phrases:
        assert phrase in done.stderr


def test_a_missing_folder_and_a_corrupt_file_are_one_paragraph(folder: Path, cli: RunCLI) -> None:
    done = cli("results", folder / "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (7, 1)
    assert "archbench run gpt1" in done.stderr
    broken = folder / "20260103T000000-000003.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    done = cli("results", folder)
    assert (done.returncode, done.stderr.count("\n")) == (7, 1)
    assert str(broken) in done.stderr


def test_a_reader_that_goes_away_is_no_error(folder: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = Path(sys.executable).with_name("archbench")
    child = subprocess.Popen([script, "results", folder, "--csv", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    _, stderr = child.communicate(timeout=60)
    assert stderr == b""
