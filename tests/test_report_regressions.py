"""``archbench report`` shows what ``archbench regress --json`` printed: failures first, ratios with their bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archbench.errors import StorageError
from archbench.regression.estimates import Estimate
from archbench.regression.verdict_table import as_json, conclusion, exact_rows, timed_row
from archbench.report.contents import Contents, read

COUNTS = {"parameters": 1000.0, "state_bytes": 64.0}
FASTER, SLOWER = Estimate(0.9, 0.85, 0.95, 12), Estimate(1.3, 1.2, 1.4, 12)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        *exact_rows("gpt1", COUNTS, {**COUNTS, "state_bytes": 96.0}),
        *exact_rows("llama", COUNTS, COUNTS),
        timed_row("gpt1", "forward_seconds", [0.0, 0.1], [0.0, 0.1], FASTER),
        timed_row("llama", "forward_seconds", [0.0, 0.1], [0.3, 0.4], SLOWER, SLOWER),
    ]
    last = {"title": "main to HEAD", "conclusion": conclusion(rows), "failed": [], "new": []}
    path = tmp_path / "regressions.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in [*map(as_json, rows), last]))
    return path


def test_failures_come_first_and_every_time_is_drawn_with_its_interval_and_the_gate(file: Path) -> None:
    (part,) = read([str(file)])
    assert part.verdict is not None
    assert part.verdict.headline.startswith("2 of 6 regressed: gpt1 state_bytes, llama forward_seconds")
    assert part.verdict.limits
    verdicts = [row[1].text for row in part.tables[0].rows]
    assert verdicts == ["FAIL", "FAIL", "ok", "ok", "ok", "ok"]
    assert part.lead is not None
    (panel,) = part.lead.panels
    assert [(one.name, one.x, one.low, one.high) for one in panel.series] == [
        ("llama", (1.3,), (1.2,), (1.4,)), ("gpt1", (0.9,), (0.85,), (0.95,)),
    ]  # fmt: skip
    assert [rule.low for rule in panel.rules] == [1.0, 1.1]


@pytest.mark.parametrize("lines", ["{}", '{"architecture": "gpt1"}\n{"title": "x", "conclusion": "y"}', "{"])
def test_a_file_that_is_no_output_of_regress_is_named(file: Path, lines: str) -> None:
    file.write_text(lines)
    with pytest.raises(StorageError) as caught:
        read([str(file)])
    assert caught.value.culprit == str(file)


def test_counts_alone_have_no_figure(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if json.loads(line).get("ratio_low") is None))
    part: Contents = read([str(file)])[0]
    assert part.lead is None
    assert len(part.tables[0].rows) == 4
