"""What ``archbench scale`` prints last: the losses by size and budget, then what law they follow, if any."""

from __future__ import annotations

from pathlib import Path

import typer

from archbench.cli.output import console, table
from archbench.presentation.quantities import duration
from archbench.report.ladder_tables import loss_table
from archbench.report.ladder_texts import law_sentences, notes
from archbench.study.scale_outcome import ScaleOutcome


def print_scale(ladder: ScaleOutcome, folder: Path) -> None:
    """Losses, laws with their tests, and what took no part."""
    plan, losses = ladder.plan, loss_table(ladder)
    typer.echo(f"{plan.text} as {plan.tokenizer}, context {plan.context_length}. {losses.caption}")
    titles = [column.title for column in losses.columns]
    made = table(*titles, right=tuple(column.title for column in losses.columns if column.kind == "number"))
    for row in losses.rows:
        made.add_row(*(cell.text for cell in row))
    out = console()
    out.print()
    out.print(made)
    out.print()
    for sentence in (*law_sentences(ladder), *notes(ladder)):
        typer.echo(sentence)
    seconds = ladder.seconds
    typer.echo(
        f"\nTook {duration(seconds.measured)}, predicted {duration(seconds.predicted)}. In {folder}: "
        f"scale.json, runs.parquet\nNext: archbench report {folder} -o report.html"
    )
