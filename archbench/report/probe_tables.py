"""The table of a probe: a row for each condition, a column for each architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archbench.presentation.quantities import counted, quantity
from archbench.presentation.tables import Cell, Column, Table, table
from archbench.report.probe_texts import best_first

if TYPE_CHECKING:
    from archbench.study.probe_outcome import ProbeOutcome, Score

_MARKS = {"solved": " =", "not learned under this budget": " ·"}


def score_table(outcome: ProbeOutcome) -> Table:
    """The scores with their decoding states, and which architectures take no part."""
    plan, names = outcome.plan, best_first(outcome)
    size = "presets as they are" if plan.parameters is None else f"{plan.parameters:,} non-embedding parameters"
    scores = {(score.architecture, score.task, score.condition): score for score in outcome.scores}
    columns = (
        Column("task", "name"), Column("condition", "name"), Column("chance", priority=1),
        *(Column(name, "name", priority=place and place + 1) for place, name in enumerate(names)),
    )  # fmt: skip
    rows = []
    for task in outcome.tasks:
        for condition in task.conditions:
            own = [scores[name, task.name, condition] for name in names]
            chance = own[0].chance
            rows.append((task.name, condition, Cell(f"{chance:.3f}".lstrip("0"), chance), *map(_cell, own)))
        own = [scores[name, task.name, task.conditions[0]] for name in names]
        rows.append((task.name, "decoding state", Cell(""), *map(_state, own)))
    notes = [
        f"{model.architecture} takes no part: {model.reason}." for model in outcome.models if model.reason is not None
    ]
    if ended := sum(trial.outcome != "ok" for trial in outcome.trials):
        notes.append(f"{ended} of {len(outcome.trials)} trainings diverged or failed; probe.json says why.")
    notes.append("= solved: 0.99 or more with every seed; · not learned under this budget (a larger one may suffice).")
    caption = (
        f"{size}, {counted(plan.seeds, 'seed')}, best of the learning rates tried; accuracy, and range over seeds. The "
        "architecture that learned most, from chance on and on average, comes first."
    )
    return table("scores", "Scores of probes", columns, rows, caption=caption, notes=notes, grouped=1)


def _cell(score: Score) -> Cell:
    if score.mean is None or score.low is None or score.high is None:
        return Cell("failed", score.mean)
    spread = "" if score.high - score.low < 0.005 else f" ({score.low:.2f}–{score.high:.2f})"
    return Cell(f"{score.mean:.3f}{spread}{_MARKS.get(score.verdict, '')}", score.mean)


def _state(score: Score) -> Cell:
    return Cell("no cache" if score.state_bytes is None else quantity(score.state_bytes, "B"), score.state_bytes)
