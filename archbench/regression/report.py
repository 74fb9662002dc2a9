"""The table: for a terminal, as Markdown for the summary of a CI job, and as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archbench.regression.verdicts import MEANING, Row

COLUMNS = ("architecture", "metric", "base", "head", "ratio", "verdict", "note")
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
"""The file that GitHub Actions shows as the job's summary."""


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table; the ratio of a time with its 95 % bounds."""
    ratio = row.ratio
    shown = "" if ratio is None else "∞" if math.isinf(ratio) else f"{ratio:.3f}"
    if row.estimate is not None:
        shown += f" [{row.estimate.low:.3f}, {row.estimate.high:.3f}]"
    return (row.architecture, row.metric, _value(row.base, row), _value(row.head, row), shown, row.verdict, row.note)


def _value(value: float | None, row: Row) -> str:
    if value is None:
        return "–"
    if row.unit == "reference":
        return f"{value:.3g} × reference"
    number = f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"
    return number if row.unit == "1" else f"{number} {row.unit}"


def markdown(rows: Sequence[Row], title: str, conclusion: str) -> str:
    """The table and what follows from it; verdicts that need a word have it below."""
    lines = [f"### {title}", "", f"{conclusion}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in rows:
        found = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells(row)]
        if row.verdict in ("FAIL", "NEW"):
            found[5] = f"**{row.verdict}**"
        lines.append(f"| {' | '.join(found)} |")
    met = [verdict for verdict in MEANING if any(row.verdict == verdict for row in rows) and verdict != "ok"]
    lines += ["", *(f"- {verdict}: {MEANING[verdict]}" for verdict in met), ""]
    return "\n".join(lines)


def write_summary(text: str) -> None:
    """Add to the job's summary, where there is one."""
    if path := os.environ.get(SUMMARY_VARIABLE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def as_json(row: Row) -> dict[str, Any]:
    """One row as plain values; bounds are null where there are none."""

    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    bounds = row.estimate
    again = row.rerun
    return {
        "architecture": row.architecture,
        "metric": row.metric,
        "unit": row.unit,
        "base": row.base,
        "head": row.head,
        "ratio": number(row.ratio),
        "ratio_low": None if bounds is None else number(bounds.low),
        "ratio_high": None if bounds is None else number(bounds.high),
        "rerun_ratio": None if again is None else number(again.ratio),
        "rerun_low": None if again is None else number(again.low),
        "rerun_high": None if again is None else number(again.high),
        "units": None if bounds is None else bounds.units,
        "verdict": row.verdict,
        "note": row.note,
    }


def conclusion(rows: Sequence[Row]) -> str:
    """The outcome in one sentence."""
    failed = [f"{row.architecture} {row.metric}" for row in rows if row.verdict == "FAIL"]
    new = sum(row.verdict == "NEW" for row in rows)
    told = f"{len(failed)} of {len(rows)} regressed: {', '.join(failed)}" if failed else f"No regression in {len(rows)}"
    unclear = [f"{row.architecture} {row.metric}" for row in rows if row.verdict == "unclear"]
    told += f"; {new} NEW, with nothing to compare with" if new else ""
    return told + (f"; unclear: {', '.join(unclear)}" if unclear else "")
