"""What ``archbench probe`` prints last: one row a condition, one column an architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from archbench.cli.output import console, table
from archbench.presentation.quantities import duration, quantity
from archbench.study.probe_outcome import ProbeOutcome, Score

STYLES = {"solved": "bold green", "partly learned": "", "not learned under this budget": "dim", "not measured": "red"}


def print_probe(outcome: ProbeOutcome, folder: Path) -> None:
    """The scores, the decoding state that they were had with, and what took no part."""
    plan = outcome.plan
    size = "presets as they are" if plan.parameters is None else f"{plan.parameters:,} non-embedding parameters"
    seeds = "one seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    typer.echo(f"{size}, {seeds}, best of the learning rates tried; accuracy, and range over seeds")
    names = [model.architecture for model in outcome.models if model.reason is None]
    made = table("task", "condition", "chance", *names, right=("chance",))
    scores = {(score.architecture, score.task, score.condition): score for score in outcome.scores}
    for task in outcome.tasks:
        for number, condition in enumerate(task.conditions):
            own = [scores[name, task.name, condition] for name in names]
            made.add_row(
                task.name if number == 0 else "", condition, f"{own[0].chance:.3f}".lstrip("0"), *map(_cell, own)
            )
        own = [scores[name, task.name, task.conditions[0]] for name in names]
        made.add_row("", "decoding state", "", *(_state(score) for score in own), style="dim")
    out = console()
    out.print()
    out.print(made)
    for model in outcome.models:
        if model.reason is not None:
            typer.echo(f"{model.architecture} took no part: {model.reason}.")
    ended = [trial for trial in outcome.trials if trial.outcome != "ok"]
    if ended:
        typer.echo(f"{len(ended)} of {len(outcome.trials)} trainings diverged or failed; probe.json tells why.")
    typer.echo(
        "\n= solved: 0.99 or more with every seed; · not learned under this budget (which is not: cannot be learned)."
    )
    seconds = outcome.seconds
    typer.echo(
        f"Took {duration(seconds.measured)}, predicted {duration(seconds.predicted)} at most. In {folder}: "
        f"probe.json, runs.parquet\nNext: archbench report {folder} -o report.html"
    )


def _cell(score: Score) -> Any:
    from rich.text import Text

    if score.mean is None or score.low is None or score.high is None:
        return Text("failed", style=STYLES["not measured"])
    mark = {"solved": " =", "not learned under this budget": " ·"}.get(score.verdict, "")
    spread = "" if score.high - score.low < 0.005 else f" ({score.low:.2f}–{score.high:.2f})"
    return Text(f"{score.mean:.3f}{spread}{mark}", style=STYLES[score.verdict])


def _state(score: Score) -> str:
    return "no cache" if score.state_bytes is None else quantity(score.state_bytes, "B")
