"""Nothing is measured of an architecture that fails the conformance checks, unless a run is told to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from archbench import RunConfig, read_results
from archbench.presentation.step_view import StepView
from archbench.results.metrics import METRICS
from archbench.runs.check import run_check
from archbench.runs.preparation import start
from archbench.runs.rows import Rows
from archbench.runs.run import _show_checks
from archbench.testing.checks import GATE
from archbench.testing.evaluation import LEVEL
from command_line import archbench
from small_runs import with_small_corpus

EXAMPLE = Path(__file__).parent / "example_plugins" / "bigram.py"
OPTIONS = [
    "--profile", "smoke", "--corpus", "small.txt", "--set", "context_length=32", "--phases", "decode", "--threads", "1",
    "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """``archbench run leaky gpt1``: its folder, and what it printed; leaky sees the token it has to predict."""
    folder = with_small_corpus(tmp_path_factory.mktemp("gate"))
    source = EXAMPLE.read_text().replace('"bigram"', '"leaky"').replace("A table of", "A cheating table of")
    source += "\n\n_honest = Bigram.forward\n"
    source += "Bigram.forward = lambda self, tokens: _honest(self, tokens) + _honest(self, tokens.roll(-1, 1))\n"
    (folder / "leaky.py").write_text(source)
    finished = archbench("run", "leaky", "gpt1", "--plugin", "leaky.py", *OPTIONS, cwd=folder)
    assert finished.returncode == 9, finished.stderr
    return folder, finished.stdout, finished.stderr


def rows(done: tuple[Path, str, str], architecture: str) -> pd.DataFrame:
    return read_results(done[0] / "results", {"architecture": architecture})


def test_an_architecture_that_fails_a_check_is_told_which_why_and_what_to_do(done: tuple[Path, str, str]) -> None:
    (error,) = (line for line in done[2].splitlines() if line.startswith("Error: "))
    assert "leaky" in error
    assert "causality: " in error
    assert re.search(r"position|token", error)
    assert f"archbench check leaky --plugin {done[0] / 'leaky.py'}" in error
    assert "--unchecked" in error
    assert "leaky (exit code 9)" in done[2]


def test_nothing_of_it_is_measured_and_its_rows_name_the_check(done: tuple[Path, str, str]) -> None:
    leaky = rows(done, "leaky")
    assert set(leaky.phase) == {"check"}
    assert leaky[leaky.value == 0].metric.to_list() == ["causality"]
    assert set(leaky.conformance) == {"failed: causality"}
    (failed,) = leaky[leaky.metric == "failed"].itertuples()
    assert failed.status.startswith("ConformanceError: ")
    assert "leaky" in failed.status
    assert pd.isna(failed.value)
    (findings,) = (done[0] / "results").glob(f"{leaky.run_id.iloc[0]}/check.json")
    (causality,) = (result for result in json.loads(findings.read_text())["results"] if result["name"] == "causality")
    assert causality["status"] == "failed"
    assert causality["evidence"] in done[2]


def test_an_architecture_that_passes_is_measured_and_every_row_says_at_which_level(
    done: tuple[Path, str, str],
) -> None:
    gpt1 = rows(done, "gpt1")
    checks = gpt1[gpt1.phase == "check"]
    assert set(checks.metric) == {check.name for check in GATE}
    assert set(checks.value) == {1.0}
    assert {"check", "decode", "environment"} == set(gpt1.phase)
    assert set(gpt1.conformance) == {str(LEVEL)}
    assert set(gpt1.status) == {"ok"}
    assert gpt1.parameters.notna().all()
    assert "gpt1 nano" in done[1]
    assert "leaky" not in done[1]


def test_the_checks_of_the_gate_are_the_metrics_of_the_phase() -> None:
    assert {metric.metric for metric in METRICS if metric.phase == "check"} == {check.name for check in GATE}


def test_unchecked_it_is_measured_and_the_summary_and_the_rows_say_so(done: tuple[Path, str, str]) -> None:
    options = [*OPTIONS, "--phases", "train", "--steps", "2", "--unchecked", "--out", "unchecked"]
    finished = archbench("run", "leaky", "--plugin", "leaky.py", *options, cwd=done[0])
    assert finished.returncode == 0, finished.stderr
    assert "(--unchecked)" in finished.stdout
    frame = read_results(done[0] / "unchecked")
    assert set(frame.conformance) == {"unchecked"}
    assert set(frame.phase) == {"train", "environment"}


def test_a_resumed_run_is_not_checked_again(done: tuple[Path, str, str]) -> None:
    run_id = rows(done, "gpt1").run_id.iloc[0]
    results = done[0] / "results"
    before = (results / run_id / "check.json").stat().st_mtime_ns
    (results / f"{run_id}.parquet").unlink()
    (results / run_id / "rows-decode.jsonl").unlink()
    finished = archbench("run", "gpt1", "--resume", run_id, "--quiet", cwd=done[0])
    assert finished.returncode == 0, finished.stderr
    assert (results / run_id / "check.json").stat().st_mtime_ns == before
    again = rows(done, "gpt1")
    assert {"check", "decode", "environment"} == set(again.phase)
    assert set(again.conformance) == {str(LEVEL)}


def test_whether_it_was_checked_and_how_long_it_may_take_are_no_other_configuration() -> None:
    config = RunConfig(architecture="gpt1")
    assert config.config_hash() == "cc6692a2cd5a", "runs of before there were checks still compare with today's"
    assert config.override(checked=False, time_limit=1).config_hash() == config.config_hash()


def test_checks_that_take_long_say_how_long_before_they_begin_and_then_which_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class SeenEnoughError(Exception):
        pass

    def tell(message: dict[str, Any]) -> None:
        told.append(message)
        if len(told) == 3:
            raise SeenEnoughError

    told: list[dict[str, Any]] = []
    monkeypatch.setattr("archbench.runs.check.LONG", 0)  # as if this small model took minutes
    config = RunConfig(architecture="gpt1", profile="smoke", out=str(tmp_path), overrides={"context_length": 256})
    run = start(config, None)
    with pytest.raises(SeenEnoughError):
        run_check(run, torch.device("cpu"), Rows("check"), tell, quiet=True)
    assert told[0]["seconds"] > 0
    with StepView(shown=True) as steps:
        for message in [{**told[0], "seconds": 420.0}, *told[1:]]:
            _show_checks(steps, "gpt1 paper", message)
        left = steps.view._moment()
    lines = [line[21:] for line in capsys.readouterr().err.splitlines()]
    count = len(GATE)
    assert lines == [
        f"gpt1 paper: {count} conformance checks on 256 positions, about 7 min",
        f"gpt1 paper: {GATE[0].name} (1 of {count})",
        f"gpt1 paper: {GATE[1].name} (2 of {count})",
    ]
    assert left is not None
    assert "about 7 min left" in left.times
