"""``archbench diff`` says what differs between two runs, and which numbers differ by more than noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archbench.results.store import write_run
from comparison_files import COMMON
from installations import RunCLI

A, B = "20261101T100000-aaaaaa", "20261101T100001-bbbbbb"
REFERENCE = Path(__file__).parents[1] / "results" / "reference"


def rows(step: float, generator: np.random.Generator) -> list[dict[str, Any]]:
    """A hundred steps with a spread of 2 %, a memory that is counted, and a loss of one seed."""
    times = step * generator.lognormal(0, 0.02, 100)
    timed = [
        {"phase": "train", "metric": "step_seconds", "unit": "s", "value": float(value), "repeat": repeat}
        for repeat, value in enumerate(times)
    ]
    memory = {"phase": "train", "metric": "peak_memory_bytes", "unit": "B", "value": 1e9}
    loss = {"phase": "quality", "metric": "bits_per_byte", "unit": "bit/byte", "value": step}
    return [*timed, memory, loss]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder, generator = tmp_path / "results", np.random.default_rng(0)
    common = {**COMMON, "architecture": "bigram", "seed": 0}
    facts = {"plugin_version": "sha256:0123", "machine": {"cpu": "one"}, "versions": {"git_revision": "abc"}}
    other = {"plugin_version": "sha256:4567", "machine": {"cpu": "one"}, "versions": {"git_revision": "def"}}
    for run_id, step, lr, known in ((A, 1.0, 1e-3, facts), (B, 1.1, 2e-3, other)):
        config = {"run": {"training": {"learning_rate": lr, "batch_size": 8}}, "model": {"n_layer": 2}, "facts": known}
        write_run(folder, run_id, rows(step, generator), config, common)
    return folder


def found(cli: RunCLI, *arguments: str | Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    done = cli("diff", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = list(map(json.loads, done.stdout.splitlines()))
    facts, numbers = ([line for line in lines if line["kind"] == kind] for kind in ("fact", "number"))
    return {one["name"]: one for one in facts}, {one["metric"]: one for one in numbers}


def test_facts_and_numbers_that_differ_are_told_from_noise(cli: RunCLI, results: Path) -> None:
    facts, numbers = found(cli, A, results / f"{B}.parquet", "--in", results)
    assert {"training.learning_rate", "plugin_version", "git_revision"} <= facts.keys()
    assert not {"training.batch_size", "model.n_layer", "cpu"} & facts.keys()
    assert (facts["plugin_version"]["part"], facts["training.learning_rate"]["part"]) == ("code", "configuration")
    step = numbers["step_seconds"]
    assert step["verdict"] == "larger than noise"
    assert step["low"] < 0.1 < step["high"]
    assert step["samples"] == [100, 100]
    assert numbers["peak_memory_bytes"]["verdict"] == "equal"
    assert numbers["bits_per_byte"]["verdict"] == "noise not known"
    assert found(cli, A, B, "--in", results, "--noise-floor", "15")[1]["step_seconds"]["verdict"] == "within noise"
    text = cli("diff", A, B, "--in", results).stdout
    assert "step_seconds" in text
    assert "peak_memory_bytes" not in text


def test_eighty_columns_have_all_of_it(
    cli: RunCLI, results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = "Linux-6.18.44-fc-v657-x86_64-with-glibc2.36"
    for run_id in (A, B):
        facts = {"machine": {"system": machine if run_id == A else machine.replace("657", "669")}}
        write_run(
            tmp_path / "wide", run_id, rows(1.0 if run_id == A else 9.5, np.random.default_rng(0)), {"facts": facts}
            | {"run": {}, "model": {}}, {**COMMON, "architecture": "bigram", "seed": 0},
        )  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    text = cli("diff", A, B, "--in", tmp_path / "wide").stdout
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert machine in text
    assert "larger" in text
    monkeypatch.setenv("COLUMNS", "160")
    assert "larger than noise" in cli("diff", A, B, "--in", results).stdout


def test_equal_work_differs_by_noise_in_nineteen_of_twenty_runs() -> None:
    import pandas as pd

    from archbench.report.run_difference import numbers
    from archbench.results.schema import COLUMNS

    generator = np.random.default_rng(1)

    def frame() -> pd.DataFrame:
        return pd.DataFrame(rows(1.0, generator), columns=[column.name for column in COLUMNS])

    verdicts = [numbers(frame(), frame())[0].verdict for _ in range(60)]
    assert verdicts.count("larger than noise") <= 9  # 3 are expected; 9 and more come in 0.3 % of the cases


def test_runs_of_a_study_are_compared_by_their_ids(cli: RunCLI) -> None:
    study = json.loads((REFERENCE / "compare-nano" / "comparison.json").read_text())
    a, b = [cell["run_id"] for cell in study["cells"] if cell["stage"] == "seed"][:2]
    facts, numbers = found(cli, a, b, "--in", REFERENCE)
    assert "seed" in facts or "architecture" in facts
    assert numbers["bits_per_byte"]["a"] != numbers["bits_per_byte"]["b"]


def test_one_run_each(cli: RunCLI, results: Path) -> None:
    done = cli("diff", results, B, "--in", results)
    assert done.returncode == 2
    assert "2 runs" in done.stderr
    done = cli("diff", A[:-1] + "b", B, "--in", results)
    assert done.returncode == 2
    assert f"Did you mean '{A}'?" in done.stderr
