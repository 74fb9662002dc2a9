"""One row a metric, base beside head, and what is to be thought of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from archbench.regression.statistics import Estimate

LIMIT = 1.10
"""The timing gate: head / base."""

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
"""Every verdict; docs/ci.md has this table."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        architecture: its name.
        metric: exact or timed.
        unit: of ``base`` and ``head``; times are multiples of the reference's.
        base, head: values; None where there is none.
        estimate: of head / base, for times.
        rerun: the second one, where the first was beyond the gate.
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
        """Head / base; None where there are no two numbers to divide."""
        if self.estimate is not None:
            return self.estimate.ratio
        if self.base is None or self.head is None:
            return None
        if not self.base:
            return 1.0 if not self.head else math.inf
        return self.head / self.base


UNITS = {
    "parameters": "1",
    "forward_flops_per_token": "FLOP/token",
    "training_flops_per_token": "FLOP/token",
    "state_bytes_per_token": "byte/token",
    "state_bytes": "byte",
    "saved_activation_bytes": "byte",
    "graph_breaks": "1",
}


def exact_rows(
    architecture: str, base: Mapping[str, float | None] | None, head: Mapping[str, float | None]
) -> list[Row]:
    """Counts of the head beside those of the base; the gate is 0 %."""
    return [_exact_row(architecture, metric, base, value) for metric, value in head.items()]


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
        verdict, note = (
            "FAIL",
            "the head has none any more" if metric != "graph_breaks" else "nothing of the head is traced",
        )
    elif head == before:
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
    """A time from the levels of base and head.

    Args:
        estimate: None where the base has none.
        rerun: of new processes, where ``estimate`` is beyond the gate.
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
    """Failures for which there is a reason: metric, or architecture:metric -> why."""
    found = []
    for row in rows:
        reason = reasons.get(f"{row.architecture}:{row.metric}", reasons.get(row.metric))
        found.append(
            replace(row, verdict="accepted", note=f"{reason} ({row.note})")
            if reason is not None and row.verdict == "FAIL"
            else row
        )
    return found
