"""One row a metric, base beside head, with its verdict; shown in a terminal, as Markdown in a CI job, and as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from archbench.presentation import tables
from archbench.presentation.tables import Column, Table, table
from archbench.regression.estimates import Estimate

LIMIT = 1.10
"""The timing gate: head / base."""

_COLUMNS = (
    Column("architecture", "name"), Column("metric", "name"), Column("base", priority=3), Column("head", priority=2),
    Column("ratio"), Column("verdict", "verdict"), Column("note", "text", priority=1),
)  # fmt: skip

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
"""Names the file that GitHub Actions shows as the job's summary."""

Verdict = Literal["ok", "less", "unclear", "not confirmed", "FAIL", "accepted", "NEW", "report", "none"]

MEANING: dict[Verdict, str] = {
    "ok": "the same count; or a time whose upper 95 % bound is below the gate",
    "less": "a smaller count, which passes; of parameters no change does",
    "unclear": "the interval of the ratio still includes the gate after the last round: no failure",
    "not confirmed": "the lower 95 % bound was above the gate, and in the rerun it was not: no failure",
    "FAIL": "a larger count, or a lower 95 % bound above the gate, twice",
    "accepted": "it would be a failure, and --accept gives the reason",
    "NEW": "the base has nothing to compare with; a failure with --require-baseline",
    "report": "a time on a GPU that others may use: shown, and judged only with --exclusive",
    "none": "neither side has it, as the state of a model that decodes without one",
}
"""Every verdict; docs/how-to/ci.md has this table."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        architecture: its name.
        metric: exact or timed.
        unit: of ``base`` and ``head``; times are multiples of the reference's.
        base, head: values; None where there is none.
        estimate: of head / base, for times.
        rerun: the second estimate, where the first was beyond the gate.
        verdict: see :data:`MEANING`.
        note: why, where the verdict does not say it.
    """

    architecture: str
    metric: str
    unit: str
    base: float | None
    head: float | None
    verdict: Verdict
    estimate: Estimate | None = None
    rerun: Estimate | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Head / base; None where one of them is missing."""
        if self.estimate is not None:
            return self.estimate.ratio
        if self.base is None or self.head is None:
            return None
        if not self.base:
            return 1.0 if not self.head else math.inf
        return self.head / self.base


_OF_A_GPU = {
    "launches": "1",
    "in_graphs": "1",
    "copies_to_device": "1",
    "bytes_to_device": "byte",
    "copies_to_host": "1",
    "bytes_to_host": "byte",
    "waits": "1",
}
"""Fields of :class:`archbench.regression.gpu_requests.Requests`."""
_WORKS = ("step", "graph_step", "token", "graph_token")

UNITS = {
    "parameters": "1",
    "forward_flops_per_token": "FLOP/token",
    "training_flops_per_token": "FLOP/token",
    "state_bytes_per_token": "byte/token",
    "state_bytes": "byte",
    "saved_activation_bytes": "byte",
    "step_bytes": "byte",
    "step_operations": "1",
    "token_operations": "1",
    "decode_bytes": "byte",
    "graph_breaks": "1",
    "loss_bytes": "byte",
    "loss_growth": "byte/position",
    "text_growth": "byte/byte",
    "subword_growth": "byte/byte",
    "results_growth": "byte/run",
    **{f"gpu_{work}_{what}": unit for what, unit in _OF_A_GPU.items() for work in _WORKS},
}


TOLERANCES = {"text_growth": 0.5, "subword_growth": 10.0, "results_growth": 200_000.0}
"""How much more of these passes: they are resident memory, which other things touch as well."""


def exact_rows(
    architecture: str,
    base: Mapping[str, float | None] | None,
    head: Mapping[str, float | None],
    reasons: Mapping[str, str] | None = None,
) -> list[Row]:
    """Counts of the head beside those of the base; the gate is 0 %, or what :data:`TOLERANCES` says.

    Args:
        architecture: whose.
        base, head: metric -> count.
        reasons: metric -> why one of the two has none.
    """
    rows = [_exact_row(architecture, metric, base, value) for metric, value in head.items()]
    return [
        replace(row, note=(reasons or {}).get(row.metric, row.note)) if None in (row.base, row.head) else row
        for row in rows
    ]


def _exact_row(architecture: str, metric: str, base: Mapping[str, float | None] | None, head: float | None) -> Row:
    unit = UNITS.get(metric, "1")
    if base is None or metric not in base:
        return Row(architecture, metric, unit, None, head, "NEW")
    before = base[metric]
    verdict: Verdict
    note = ""
    if before is None:
        verdict = "none" if head is None else "NEW"
    elif head is None:
        verdict = "FAIL"
        note = "nothing of the head is traced" if metric == "graph_breaks" else "the head has none any more"
    elif head == before or abs(head - before) <= TOLERANCES.get(metric, 0.0):
        verdict = "ok"
    elif head < before and metric != "parameters":
        verdict = "less"
    else:
        verdict, note = "FAIL", f"{head - before:+,.6g}"
    return Row(architecture, metric, unit, before, head, verdict, note=note)


def timed_row(
    architecture: str,
    metric: str,
    base: Sequence[float],
    head: Sequence[float],
    estimate: Estimate | None,
    rerun: Estimate | None = None,
    *,
    judged: bool = True,
    limit: float = LIMIT,
) -> Row:
    """A time, from the levels of base and head.

    Args:
        estimate: None where the base has no levels.
        rerun: the estimate of new processes, where ``estimate`` is beyond the gate.
        judged: False for a device that others may use.
    """
    before, after = (math.exp(sum(levels) / len(levels)) if levels else None for levels in (base, head))
    row = Row(architecture, metric, "reference", before, after, "NEW", estimate, rerun)
    if estimate is None:
        return row
    if not judged:
        return replace(row, verdict="report", note="others may use this device (--exclusive)")
    if estimate.low > limit:
        if rerun is not None and rerun.low > limit:
            return replace(row, verdict="FAIL", note=f"rerun {shown(rerun)}")
        note = "there was no rerun" if rerun is None else f"rerun {shown(rerun)}"
        return replace(row, verdict="not confirmed", note=note)
    if estimate.high < limit:
        return replace(row, verdict="ok")
    return replace(row, verdict="unclear", note="too much noise to say: run again, or with more --max-rounds")


def shown(estimate: Estimate) -> str:
    """``1.02 [0.99, 1.05]``."""
    return f"{estimate.ratio:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def accepted(rows: Sequence[Row], reasons: Mapping[str, str]) -> list[Row]:
    """The rows, with failures accepted for which there is a reason: metric, or architecture:metric -> why."""
    found = []
    for row in rows:
        reason = reasons.get(f"{row.architecture}:{row.metric}", reasons.get(row.metric))
        found.append(
            replace(row, verdict="accepted", note=f"{reason} ({row.note})")
            if reason is not None and row.verdict == "FAIL"
            else row
        )
    return found


def row_table(rows: Sequence[Row]) -> Table:
    """The rows as a table."""
    return table("regressions", "", _COLUMNS, map(cells, rows))


def count_table(rows: Sequence[Row]) -> Table:
    """The counts alone, where there is nothing to compare them with."""
    columns = (Column("architecture", "name"), Column("metric", "name"), Column("count"))
    return table("counts", "", columns, [(row.architecture, row.metric, _value(row.head, row)) for row in rows])


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table; the ratio of a time with its 95 % bounds."""
    ratio = row.ratio
    if row.estimate is not None:
        text = shown(row.estimate)
    else:
        text = "" if ratio is None else "∞" if math.isinf(ratio) else f"{ratio:.3f}"
    return (row.architecture, row.metric, _value(row.base, row), _value(row.head, row), text, row.verdict, row.note)


def _value(value: float | None, row: Row) -> str:
    if value is None:
        return "–"
    if row.unit == "reference":
        return f"{value:.3g} × reference"
    number = f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"
    return number if row.unit == "1" else f"{number} {row.unit}"


def markdown(rows: Sequence[Row], title: str, conclusion: str) -> str:
    """The table and its conclusion, followed by the meaning of each verdict but "ok"."""
    lines = [f"### {tables.escaped(title)}", "", tables.escaped(conclusion), "", *tables.markdown(row_table(rows))]
    met = [verdict for verdict in MEANING if any(row.verdict == verdict for row in rows) and verdict != "ok"]
    lines += [*(f"- {verdict}: {MEANING[verdict]}" for verdict in met), ""]
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

    def bounds(of: Estimate | None) -> tuple[float | None, float | None]:
        return (None, None) if of is None else (number(of.low), number(of.high))

    low, high = bounds(row.estimate)
    rerun_low, rerun_high = bounds(row.rerun)
    return {
        "architecture": row.architecture,
        "metric": row.metric,
        "unit": row.unit,
        "base": row.base,
        "head": row.head,
        "ratio": number(row.ratio),
        "ratio_low": low,
        "ratio_high": high,
        "rerun_ratio": None if row.rerun is None else number(row.rerun.ratio),
        "rerun_low": rerun_low,
        "rerun_high": rerun_high,
        "units": None if row.estimate is None else row.estimate.units,
        "verdict": row.verdict,
        "note": row.note,
    }


def conclusion(rows: Sequence[Row]) -> str:
    """The outcome in one sentence."""

    def named(verdict: Verdict) -> list[str]:
        return [f"{row.architecture} {row.metric}" for row in rows if row.verdict == verdict]

    failed, new, unclear = named("FAIL"), named("NEW"), named("unclear")
    text = f"{len(failed)} of {len(rows)} regressed: {', '.join(failed)}" if failed else f"No regression in {len(rows)}"
    text += f"; {len(new)} NEW, with nothing to compare with" if new else ""
    return text + (f"; unclear: {', '.join(unclear)}" if unclear else "")
