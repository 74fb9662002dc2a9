"""Tables of a ladder: laws, losses, and predictions of the largest size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from archbench.presentation.quantities import ABSENT, count, digits, interval, percent, short
from archbench.presentation.tables import Cell, Column, Table, table
from archbench.study.law import VANISHED

if TYPE_CHECKING:
    from archbench.study.findings import Finding
    from archbench.study.scale_outcome import ScaleOutcome

NO_FLOOR = "no floor found"
"""Of an E at its bound."""


def law_table(ladder: ScaleOutcome) -> Table:
    """The law of each architecture with its intervals, and its test."""
    three = "{:.3f}".format
    columns = (
        Column("architecture", "name"),
        Column("points", hint="measured pairs of size and budget; seeds are averaged"),
        Column("α", hint="of the parameters: how fast loss falls with N", show=three),
        Column("95 %", hint="interval of α: points resampled", show=_three_interval),
        Column("β", hint="of the tokens: how fast loss falls with D", show=three),
        Column("95 %", hint="interval of β: points resampled", show=_three_interval),
        Column("E", unit="nats/token", hint="the floor of the loss", show=three),
        Column("95 %", unit="nats/token", hint="interval of E: points resampled", show=_floor),
        Column("A", show=digits),
        Column("B", show=digits),
        Column(
            "held-out error", unit="relative", show=_share,
            hint="at the largest size, which the fit leaves out; mean over budgets",
        ),
        Column("largest error", unit="relative", show=_share, hint="of a budget"),
        Column(
            "unchanged", unit="relative", show=_share, hint="error of assuming the loss of the next smaller size"
        ),
    )  # fmt: skip
    reasons = [f"{one.architecture}: {one.reason}." for one in ladder.findings if one.reason is not None]
    return table("laws", "Laws", columns, map(_law, best_first(ladder)), notes=reasons)


def best_first(ladder: ScaleOutcome) -> list[Finding]:
    """The findings, that with the lowest loss first."""
    return sorted(ladder.findings, key=lambda finding: min(point.loss for point in finding.points))


def _three_interval(low: float, high: float | None) -> str:
    return f"above {low:.3f}" if high is None else interval(low, high, 3)


def _floor(low: float, high: float) -> str:
    """An interval of E that begins at its bound has no lower end."""
    return f"below {high:.3f}" if low <= VANISHED else _three_interval(low, high)


def _share(value: float) -> str:
    return percent(value, signed=False)


def _law(finding: Finding) -> Sequence[object]:
    if finding.fitted is None:
        return (finding.architecture, len(finding.points), *[None] * 11)
    law, test = finding.fitted.law, finding.held_out
    bounds = {name: (found.low, found.high) for name, found in finding.intervals.items()}
    return (
        finding.architecture, len(finding.points), law.alpha, bounds.get("alpha"), law.beta, bounds.get("beta"),
        Cell(NO_FLOOR, law.E) if law.floorless else law.E, bounds.get("E"), law.A, law.B,
        test and test.error, test and test.worst, test and test.unchanged,
    )  # fmt: skip


def loss_table(ladder: ScaleOutcome) -> Table:
    """Every measured loss."""
    budgets = [
        Column(f"{short(budget)} tokens", unit="nats/token", priority=place)
        for place, budget in reversed(list(enumerate(reversed(ladder.plan.budgets))))
    ]
    columns = (
        Column("architecture", "name"), Column("parameters", hint="non-embedding, active", show=count),
        Column("shape", "name", hint="layers × width", priority=len(budgets)),
        Column("learning rate", show="{:.2g}".format, priority=len(budgets) + 1), *budgets,
    )  # fmt: skip
    seeds = ladder.plan.seeds
    spread = "one seed" if seeds == 1 else f"{seeds} seeds, with their range"
    caption = f"Validation loss, nats per token, of {spread}."
    return table("losses", "Losses", columns, _losses(ladder), caption=caption, notes=ladder.doubts, grouped=1)


def _losses(ladder: ScaleOutcome) -> Iterator[Sequence[object]]:
    points = {
        (finding.architecture, point.size, point.budget): point
        for finding in ladder.findings
        for point in finding.points
    }
    found = [finding.architecture for finding in best_first(ladder)]
    for name in (*found, *(name for name in ladder.plan.architectures if name not in found)):
        for rung in (rung for rung in ladder.rungs if rung.architecture == name):
            cells = []
            for budget in ladder.plan.budgets:
                point = points.get((name, rung.size, budget))
                text = ABSENT if point is None else f"{point.loss:.4f}"
                if point is not None and len(point.losses) > 1:
                    text += f" ({min(point.losses):.3f}–{max(point.losses):.3f})"
                cells.append(Cell(text, None if point is None else point.loss))
            shape = None if rung.n_layer is None or rung.d_model is None else f"{rung.n_layer} × {rung.d_model}"
            rate = rung.tuning and rung.tuning.learning_rate
            yield name, rung.non_embedding_active_parameters, shape, rate, *cells


def forecast_table(ladder: ScaleOutcome) -> Table | None:
    """Predictions of the largest size from the smaller ones; None without a test."""
    four = "{:.4f}".format
    columns = (
        Column("architecture", "name"), Column("parameters", show=short), Column("tokens", show=short),
        Column("measured", unit="nats/token", show=four), Column("predicted", unit="nats/token", show=four),
        Column("error", unit="relative"), Column("unchanged", unit="relative"),
    )  # fmt: skip
    rows = [
        (finding.architecture, one.size, one.D, one.measured, one.predicted, one.error, one.unchanged)
        for finding in best_first(ladder)
        if finding.held_out is not None
        for one in finding.held_out.forecasts
    ]
    caption = "Predicted from the smaller sizes. Unchanged: the error of assuming the loss of the next smaller size."
    return table("forecasts", "The largest size, held out", columns, rows, caption=caption) if rows else None
