"""What ``archbench compare`` and ``archbench tune`` print last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from archbench.cli.output import console, table
from archbench.presentation import quantities as numbers
from archbench.presentation.quantities import duration, quantity
from archbench.study.comparison_outcome import ComparisonOutcome, Plan, TuningOutcome


def print_comparison(outcome: ComparisonOutcome, folder: Path) -> None:
    """Who is better, at which size and budget, and what it costs; three tables, the verdict first."""
    plan = outcome.plan
    typer.echo(_heading(plan))
    out = console()
    out.print()
    out.print(_quality(outcome))
    units = outcome.units
    typer.echo(
        f"\nIntervals are 95 %, of the difference to {plan.baseline}: by {plan.seeds} seeds (Welch), by "
        f"{units.count} {units.kind} of the text (bootstrap), and by both, which decides; p after Holm.\n"
        f"Margin {plan.margin:.2%}: a smaller difference matters to nobody. Everything below is exploratory."
    )
    if len(outcome.looks) > 1:
        earlier = ", ".join(f"{look.seeds} seeds, margin {look.margin:.2%}" for look in outcome.looks[:-1])
        typer.echo(
            f"Read before with {earlier}: p and verdicts hold for one look, and looking again finds more by chance."
        )
    for row in outcome.quality:
        if row.reason or row.seeds_needed:
            needed = f"{row.seeds_needed} seeds each should decide it" if row.seeds_needed else ""
            typer.echo(f"{row.architecture}: {'; '.join(filter(None, (row.reason, needed)))}.")
    for model in outcome.models:
        if model.reason:
            typer.echo(f"{model.architecture} took no part: {model.reason}.")
    out.print()
    out.print(_sizes(outcome))
    if outcome.costs:
        out.print()
        out.print(_costs(outcome))
    seconds = outcome.seconds
    typer.echo(
        f"\nTook {duration(seconds.measured)}, predicted {duration(seconds.predicted)}. In {folder}: "
        f"comparison.json, runs.parquet\nNext: archbench report {folder} -o report.html"
    )


def print_tuning(outcome: TuningOutcome, folder: Path) -> None:
    """The learning-rate curve of each architecture."""
    typer.echo(_heading(outcome.plan))
    made = table("architecture", "learning rate", "bits/byte", "seeds", "", right=("learning rate", "bits/byte"))
    for tuning in outcome.tuning:
        for point in tuning.points:
            mean = "–" if point.mean is None else f"{point.mean:.4f}"
            seeds = "  ".join("diverged or failed" if bits is None else f"{bits:.4f}" for bits in point.bits_per_byte)
            made.add_row(tuning.architecture, f"{point.learning_rate:.3g}", mean, seeds, "")
        rate = tuning.learning_rate
        chosen = "none" if rate is None else f"{rate:.3g}"
        made.add_row(tuning.architecture, chosen, "", tuning.note or "minimum of the parabola", "chosen")
    console().print(made)
    for model in outcome.models:
        if model.reason:
            typer.echo(f"{model.architecture} took no part: {model.reason}.")
    typer.echo(f"\nIn {folder}: tuning.json, runs.parquet. archbench compare with the same options goes on from here.")


def _heading(plan: Plan) -> str:
    budget = plan.budget
    unit = {"flops": "FLOP", "tokens": "token", "seconds": "s"}[budget.unit]
    return (
        f"{plan.corpus} as {plan.tokenizer}, context {plan.context_length}; {plan.matched_on}; "
        f"{quantity(budget.amount, unit)} a run"
    )


def _quality(outcome: ComparisonOutcome) -> Any:
    right = ("bits/byte", "difference", "seeds, %", "text, %", "both, %", "p")
    made = table("architecture", "verdict", *right, "runs", right=right)
    for row in outcome.quality:
        bits = "–" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}"
        if row.sd is not None:
            bits += f" ± {row.sd:.4f}"
        intervals = [
            numbers.percent_interval(getattr(row, f"{kind}_low"), getattr(row, f"{kind}_high"))
            for kind in ("seed", "document", "combined")
        ]
        ended = "".join(f", {getattr(row, kind)} {kind}" for kind in ("diverged", "lost") if getattr(row, kind))
        made.add_row(
            row.architecture, row.verdict, bits, numbers.percent(row.difference), *intervals,
            numbers.probability(row.p_holm), f"{row.seeds}{ended}",
        )  # fmt: skip
    return made


def _sizes(outcome: ComparisonOutcome) -> Any:
    right = ("parameters", "active", "compared", "tokens", "FLOPs", "seconds", "state", "learning rate")
    made = table("architecture", *right, right=right)
    spent = {row.architecture: row for row in outcome.spent}
    rates = {row.architecture: row.learning_rate for row in outcome.tuning}
    for model in outcome.models:
        name = model.architecture
        if not model.matched:
            continue
        own, rate = spent[name], rates.get(name)
        deviation = "" if not model.deviation else f" ({model.deviation:+.1%})"
        state = "none" if model.state_bytes is None else quantity(model.state_bytes, "B")
        made.add_row(
            name, f"{model.parameters:,}", f"{model.active_parameters:,}",
            f"{model.non_embedding_active_parameters:,}{deviation}", _number(own.training_tokens, "token"),
            _number(own.training_flops, "FLOP"), _number(own.training_seconds, "s"), state,
            "–" if rate is None else f"{rate:.3g}",
        )  # fmt: skip
    return made


def _costs(outcome: ComparisonOutcome) -> Any:
    made = table("cost", "architecture", "value", "ratio", "95 %", "noise floor", "", right=("value", "ratio"))
    for row in outcome.costs:
        made.add_row(
            row.label, row.architecture, _number(row.value, row.unit),
            numbers.ratio(row.ratio), numbers.ratio_interval(row.low, row.high),
            numbers.ratio_interval(row.floor_low, row.floor_high), row.verdict,
        )  # fmt: skip
    return made


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else quantity(value, unit)
