"""Figures of quality: differences to the baseline, and loss by position."""

from __future__ import annotations

from archbench.presentation.quantities import percent
from archbench.report.evidence import Evidence
from archbench.report.figures import Axis, Figure, Panel, Rule, Series

_PARTS: tuple[tuple[str, str, float], ...] = (
    ("seed", "seeds alone", 0.24),
    ("combined", "seeds and documents", 0.0),
    ("document", "documents alone", -0.24),
)


def difference_figure(evidence: Evidence) -> Figure | None:
    """Differences to the baseline with their intervals and the margin; None without a difference."""
    outcome = evidence.outcome
    if outcome is None:
        return None
    rows = [row for row in outcome.quality if row.difference is not None and row.architecture in evidence.names]
    if not rows:
        return None
    rows.sort(key=lambda row: row.difference or 0.0)
    series = []
    for line, row in enumerate(reversed(rows)):
        for part, role, offset in _PARTS:
            low, high = getattr(row, f"{part}_low"), getattr(row, f"{part}_high")
            if low is None or high is None:
                continue
            series.append(
                Series(
                    row.architecture, evidence.styles[row.architecture], (row.difference or 0.0,), (line + offset,),
                    low=(low,), high=(high,), sideways=True, drawn="points", heavy=part == "combined", role=role,
                    notes=(f"{role}: {percent(low)} to {percent(high)}",),
                )
            )  # fmt: skip
    margin = outcome.plan.margin
    ticks = tuple(float(line) for line in range(len(rows)))
    y = Axis(
        "", "1", ticks=ticks, labels=tuple(row.architecture for row in reversed(rows)), limits=(-0.6, len(rows) - 0.4)
    )
    panel = Panel(
        f"difference to {outcome.plan.baseline}",
        Axis(f"difference to {outcome.plan.baseline} (left is better)", "relative"), y, tuple(series),
        rules=(Rule(-margin, margin, f"margin ± {100 * margin:g} %"), Rule(0.0)),
    )  # fmt: skip
    level = f"{outcome.plan.confidence:.0%}"
    return Figure(
        "difference", "Difference in quality",
        f"Thick: {level} interval of seeds and {outcome.units.kind} combined, which decides. Thin, above: "
        f"seeds alone; below: {outcome.units.kind} alone. Differences within the shaded margin are ignored.",
        (panel,),
        remarks=tuple(
            f"{row.architecture} is not drawn: no difference was computed (see below the table)."
            for row in outcome.quality
            if row.difference is None and row.verdict != "baseline" and row.architecture in evidence.names
        ),
        provenance=(("quality", f"{outcome.units.count:,} {outcome.units.kind}, the same for all; comparison.json"),),
    )  # fmt: skip


def position_figure(evidence: Evidence) -> Figure | None:
    """Loss by position, in the trained window and in longer ones; None if not measured."""
    measured = [row for row in evidence.positions if row.loss is not None]
    if not measured:
        return None
    trained = min(row.context_length // max(row.multiple, 1) for row in evidence.positions)
    panels = []
    for multiple in sorted({row.multiple for row in measured}):
        series = []
        for name in evidence.names:
            own = sorted(
                (row.position, row.loss) for row in measured if row.architecture == name and row.multiple == multiple
            )
            if own:
                x, y = zip(*own, strict=True)
                series.append(Series(name, evidence.styles[name], x, y, drawn="line+points"))
        window = max(row.context_length for row in measured if row.multiple == multiple)
        title = f"{window:,} positions" + (f", {multiple} × as trained" if multiple > 1 else ", as trained")
        rules = (Rule(float(trained), text="trained to here"),) if multiple > 1 else ()
        across = Axis("position in the window", "token", limits=(-0.03 * window, 1.03 * window))
        panels.append(Panel(title, across, Axis("loss", "nats/token"), tuple(series), rules))
    causes = {
        row.architecture: f"{row.architecture}: {row.cause.rstrip('.')}."
        for row in sorted(evidence.positions, key=lambda row: -row.context_length)
        if row.cause
    }
    return Figure(
        "position", "Loss by position, and beyond the training length",
        "Mean over seeds of the loss in ranges of positions, each drawn at its first. The loss of a model that uses "
        "more text falls to the right; that of one that does not extrapolate rises beyond the dashed line.",
        tuple(panels), remarks=tuple(causes.values()),
        provenance=(("measured", "the confirming seeds' models on the validation text; comparison.json"),),
    )  # fmt: skip
