"""``archbench scale`` from the command line: what it leaves, how it goes on, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import archbench as package
from archbench.files.seal import unsealed
from archbench.report.contents import read
from archbench.report.markdown import markdown
from command_line import archbench
from golden import snapshots, studies
from installations import RunCLI, kill_when_said


def outcome_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = unsealed(json.loads((folder / "scale.json").read_text()))
    return found


@pytest.mark.slow
def test_a_short_ladder_is_drawn_and_not_fitted_and_is_resumed_with_more_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(studies.HERE)
    out = tmp_path / "out"
    shutil.copytree(studies.STUDIES / "ladder", out)
    before = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    old = {(point["size"], point["budget"]): point for point in outcome_of(out)["findings"][0]["points"]}
    command = [part for part in studies.SCALE if part not in ("--json", "--sizes", "10k,20k", "--budgets", "2k,4k")]
    more = archbench(*command, "--sizes", "10k", "--budgets", "2k,4k,6k", "--out", out, cwd=studies.HERE)
    assert more.returncode == 0, more.stderr
    assert "12" in more.stdout, "points that a law takes"
    assert before.items() <= {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}.items()
    (finding,) = outcome_of(out)["findings"]
    assert finding["fitted"] is None
    points = {point["budget"]: point for point in finding["points"]}
    assert list(points) == [2_000, 4_000, 6_000]
    if snapshots.golden("cell_keys")["versions"] == snapshots.versions():  # or all of it was measured anew
        assert points[2_000] == old[10_000, 2_000]
    assert all(abs(point["N"] / 10_000 - 1) <= 0.02 for point in points.values())
    rows = package.read_results(out / "runs.parquet")
    assert set(rows.role) == {"confirm"}, "also of runs before there were roles"
    losses = set(rows[(rows.phase == "quality") & (rows.metric == "loss")].value)
    assert losses == {point["loss"] for point in points.values()}
    assert set(rows.tokenizer) == {"byte"}

    (part,) = read([str(out)])  # tests/test_reference_ladder.py makes a page of one
    assert [figure.key for figure in part.figures] == ["size", "tokens", "compute"]
    assert "drawn and not fitted" in markdown([part], [{}])

    other = archbench(
        *command, "--sizes", "10k", "--budgets", "2k", "--set", "n_layer=1", "--out", out, cwd=studies.HERE
    )
    assert other.returncode == 2
    assert str(out) in other.stderr
    assert outcome_of(out)["findings"] == [finding]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "archbench scale"),
        (("gtp1",), "'gpt1'"),
        (("gpt1", "gpt1"), "'gpt1'"),
        (("gpt1", "--sizes", "25k,25k"), "25000"),
        (("gpt1", "--sizes", "little"), "little"),
        (("gpt1", "--budgets", "10"), "512 tokens"),
        (("gpt1", "--preset", "huge"), "preset"),
        (("gpt1", "--config", "training.tokens=5"), "--budgets"),
        (("gpt1", "--config", "seed=5"), "--config seed"),
        (("gpt1", "--set", "n_layers=3"), "n_layer"),
        (("gpt1", "--sizes", "100"), "archbench scale"),
    ],
)
def test_bad_input_names_the_culprit_and_the_next_step(
    cli: RunCLI, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = cli("scale", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_report_of_a_ladder_that_is_unfinished_or_damaged_says_what_to_do(cli: RunCLI, tmp_path: Path) -> None:
    (tmp_path / "scale-plan.json").write_text("{}")
    unfinished = cli("report", tmp_path, "-o", tmp_path / "page.html")
    assert unfinished.returncode == 7
    assert "archbench scale" in unfinished.stderr
    (tmp_path / "scale.json").write_text('{"format": 1, "archbench_version": 3}')
    damaged = cli("report", tmp_path, "-o", tmp_path / "page.html")
    assert damaged.returncode == 7
    assert "archbench_version" in damaged.stderr
    (tmp_path / "scale.json").write_text('{"format": 99}')
    newer = cli("report", tmp_path, "-o", tmp_path / "page.html")
    assert newer.returncode == 7
    assert "99" in newer.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_a_killed_ladder_leaves_no_process_goes_on_and_is_fitted(cli: RunCLI, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        "scale", "llama", "--config", "checked=false", "--sizes", "13k,25k,50k,100k", "--budgets", "8k,32k,128k",
        "--set", "context_length=32", "--seeds", "2", "--out", out,
    )  # fmt: skip
    kill_when_said("[3/", *command, cwd=tmp_path)
    assert not (out / "scale.json").exists()
    again = cli(*command)  # 56 runs of 5 to 30 s
    assert again.returncode == 0, again.stderr
    assert "of them known" in again.stderr
    outcome = outcome_of(out)
    (finding,) = outcome["findings"]
    assert len(finding["points"]) == 12
    assert all(len(point["losses"]) == 2 for point in finding["points"])
    assert (finding["fitted"] is None) != (finding["held_out"] is not None)
    rungs = outcome["rungs"]
    assert all(len(rung["tuning"]["points"]) >= 4 for rung in rungs)
    rates = {(point["size"], point["learning_rate"]) for point in finding["points"]}
    assert rates == {(rung["size"], rung["tuning"]["learning_rate"]) for rung in rungs}

    done = cli(*command)
    assert re.search(r"(\d+) runs, \1 of them known, about 0 s left", done.stderr), done.stderr
    assert outcome_of(out)["findings"] == outcome["findings"]
