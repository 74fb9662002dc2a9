"""The reference probes: the documentation's tables, ``probe.json`` and the rows say the same."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

import archbench

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
FOLDERS = [REFERENCE / "probe-mini", *sorted((REFERENCE / "probe-marks").iterdir())]


def outcome_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "probe.json").read_text())
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_scores_are_those_of_the_rows(folder: Path) -> None:
    rows = archbench.read_results(folder / "runs.parquet")
    rows = rows[rows.metric == "accuracy"]
    means = rows.groupby(["architecture", "corpus", "operation"]).value.mean()
    for score in outcome_of(folder)["scores"]:
        mean = means[score["architecture"], score["task"], score["condition"]]
        assert mean == pytest.approx(score["mean"])


def test_every_training_stayed_within_a_minute_of_one_core_and_all_within_what_was_predicted() -> None:
    outcome = outcome_of(REFERENCE / "probe-mini")
    assert all(trial["cpu_seconds"] <= 60 for trial in outcome["trials"])
    assert outcome["seconds"]["measured"] < 1.05 * outcome["seconds"]["predicted"]


def test_the_documentation_has_every_score_of_the_reference() -> None:
    text = (ROOT / "docs" / "explanation" / "probe.md").read_text()
    outcome = outcome_of(REFERENCE / "probe-mini")
    names = [model["architecture"] for model in outcome["models"]]
    scores = {(one["task"], one["condition"], one["architecture"]): one for one in outcome["scores"]}
    told = 0
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 + len(names) or not cells[0].startswith("`"):
            continue
        for name, cell in zip(names, cells[3:], strict=True):
            score = scores[cells[0].strip("`"), cells[1], name]
            assert cell.strip("*") == f"{score['mean']:.3f}"
            assert cell.startswith("**") == (score["verdict"] == "solved")
            told += 1
    assert told == len(scores)
    assert re.search(re.escape(outcome["command"].removeprefix("archbench ")), text)


def test_the_known_marks_were_had_again() -> None:
    marks = REFERENCE / "probe-marks"
    recalled = {
        folder.name: {score["condition"]: score["values"] for score in outcome_of(folder)["scores"]}
        for folder in marks.iterdir()
    }
    assert min(recalled["attention"]["8 pairs"]) >= 0.99
    widths = [statistics.fmean(recalled[f"linear-attention-{N}"]["8 pairs"]) for N in (4, 8)]
    assert widths[0] < 0.9 < 0.99 < widths[1]
    among_48 = [statistics.fmean(recalled[f"recall-48-width-{N}"]["8 pairs"]) for N in (4, 8, 16, 64)]
    assert among_48 == pytest.approx([0.55, 0.80, 0.92, 0.998], abs=0.04)  # one seed of an earlier trial; ours of three
    states = {(one["architecture"], one["condition"]): one for one in outcome_of(marks / "state")["scores"]}
    assert min(states["lstm", "length 128"]["values"]) >= 0.99
    assert states["no-positions", "length 32"]["verdict"] == "not learned under this budget"


def test_the_documentation_has_the_marks_as_they_were_had() -> None:
    text = (ROOT / "docs" / "explanation" / "probe.md").read_text()
    for width in (4, 8, 16, 64):
        (score,) = outcome_of(REFERENCE / "probe-marks" / f"recall-48-width-{width}")["scores"]
        told = f"| {score['mean']:.3f} ({min(score['values']):.3f}–{max(score['values']):.3f}) |"
        assert re.search(rf"\b{width} \| `recall-48`.*{re.escape(told)}", text)
