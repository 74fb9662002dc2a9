"""A ladder's tables: laws, losses, and forecasts."""

from __future__ import annotations

from archbench.presentation.quantities import ABSENT, count, digits, interval, percent, short
from archbench.report.tables import Cell, Column, Table
from archbench.study.findings import Finding
from archbench.study.outcome import Interval
from archbench.study.scale_outcome import ScaleOutcome


def law_table(ladder: ScaleOutcome) -> Table:
    """The law of each architecture with its intervals, and its test."""
    columns = (
        Column("architecture", "name"),
        Column("points", hint="sizes × budgets that were measured; seeds are averaged"),
        Column("α", hint="of the parameters: how fast loss falls with N"),
        Column("95 %", hint="interval of α: points resampled"),
        Column("β", hint="of the tokens: how fast loss falls with D"),
        Column("95 %", hint="interval of β: points resampled"),
        Column("E", unit="nats/token", hint="what no size and budget gets below"),
        Column("95 %", unit="nats/token", hint="interval of E: points resampled"),
        Column("A"),
        Column("B"),
        Column("held-out error", unit="relative", hint="at the largest size, kept from it; mean over budgets"),
        Column("unchanged", unit="relative", hint="error of taking the next smaller size's loss as it is"),
    )  # fmt: skip
    reasons = [f"{one.architecture}: {one.reason}." for one in ladder.findings if one.reason is not None]
    rows = tuple(_law(finding) for finding in ladder.findings)
    return Table("laws", "Laws", "", columns, rows, tuple(reasons))


def loss_table(ladder: ScaleOutcome) -> Table:
    """Every loss that was measured."""
    budgets = [Column(f"{short(budget)} tokens", unit="nats/token") for budget in ladder.plan.budgets]
    columns = (
        Column("architecture", "name"), Column("parameters", hint="non-embedding, active"), Column("shape", "text"),
        Column("learning rate"), *budgets,
    )  # fmt: skip
    seeds = ladder.plan.seeds
    caption = "Validation loss, nats a token, of " + (
        "one seed." if seeds == 1 else f"{seeds} seeds, with their range."
    )
    return Table("losses", "Losses", caption, columns, tuple(_losses(ladder)))


def forecast_table(ladder: ScaleOutcome) -> Table | None:
    """What the law of the smaller sizes said of the largest; None where none was tested."""
    rows = [
        (
            Cell(finding.architecture, finding.architecture), Cell(short(one.size), one.size),
            Cell(short(one.D), one.D),
            Cell(f"{one.measured:.4f}", one.measured), Cell(f"{one.predicted:.4f}", one.predicted),
            Cell(percent(one.error), one.error), Cell(percent(one.unchanged), one.unchanged),
        )
        for finding in ladder.findings
        if finding.held_out is not None
        for one in finding.held_out.forecasts
    ]  # fmt: skip
    if not rows:
        return None
    columns = (
        Column("architecture", "name"), Column("parameters"), Column("tokens"),
        Column("measured", unit="nats/token"), Column("foretold", unit="nats/token"),
        Column("error", unit="relative"), Column("unchanged", unit="relative"),
    )  # fmt: skip
    caption = (
        "Foretold by the law of the smaller sizes. Unchanged: the error of the next smaller size's loss, as it is."
    )
    return Table("forecasts", "The largest size, held out", caption, columns, tuple(rows))


def _law(finding: Finding) -> tuple[Cell, ...]:
    name, points = Cell(finding.architecture, finding.architecture), Cell(str(len(finding.points)), len(finding.points))
    if finding.fitted is None:
        return (name, points, *(Cell(ABSENT) for _ in range(10)))
    law, test = finding.fitted.law, finding.held_out
    error, unchanged = (None, None) if test is None else (test.error, test.unchanged)
    return (
        name, points,
        Cell(f"{law.alpha:.3f}", law.alpha), _bounds(finding.intervals.get("alpha")),
        Cell(f"{law.beta:.3f}", law.beta), _bounds(finding.intervals.get("beta")),
        Cell(f"{law.E:.3f}", law.E), _bounds(finding.intervals.get("E")),
        Cell(digits(law.A), law.A), Cell(digits(law.B), law.B),
        Cell(percent(error, signed=False), error), Cell(percent(unchanged, signed=False), unchanged),
    )  # fmt: skip


def _bounds(found: Interval | None) -> Cell:
    low, high = (None, None) if found is None else (found.low, found.high)
    return Cell(interval(low, high, 3), None if low is None or high is None else high - low)


def _losses(ladder: ScaleOutcome) -> list[tuple[Cell, ...]]:
    points = {
        (finding.architecture, point.size, point.budget): point
        for finding in ladder.findings
        for point in finding.points
    }
    rows = []
    for name in ladder.plan.architectures:
        for rung in (rung for rung in ladder.rungs if rung.architecture == name):
            cells = []
            for budget in ladder.plan.budgets:
                point = points.get((name, rung.size, budget))
                text = ABSENT if point is None else f"{point.loss:.4f}"
                if point is not None and len(point.losses) > 1:
                    text += f" ({min(point.losses):.3f}–{max(point.losses):.3f})"
                cells.append(Cell(text, None if point is None else point.loss))
            number, rate = rung.non_embedding_active_parameters, rung.tuning.learning_rate if rung.tuning else None
            rows.append(
                (
                    Cell(name, name), Cell(count(number), number), Cell(_shape(rung.n_layer, rung.d_model)),
                    Cell(ABSENT if rate is None else f"{rate:.2g}", rate), *cells,
                )
            )  # fmt: skip
    return rows


def _shape(n_layer: int | None, d_model: int | None) -> str:
    """Layers × width, as far as the architecture names them so."""
    return ABSENT if n_layer is None or d_model is None else f"{n_layer} × {d_model}"
