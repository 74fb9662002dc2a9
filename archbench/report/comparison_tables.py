"""The tables of a comparison: verdict, sizes and spending, costs, learning rates, and runs that did not finish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from archbench.presentation.quantities import (
    ABSENT,
    compact,
    interval,
    percent_interval,
    probability,
    quantity,
    ratio,
    ratio_interval,
    spread,
)
from archbench.presentation.tables import Cell, Column, Table, table
from archbench.report.conclusions import held_equal
from archbench.study.task_accuracy import JUDGED

if TYPE_CHECKING:
    import pandas as pd

    from archbench.study.comparison_outcome import ComparisonOutcome, Model, TuningOutcome
    from archbench.study.verdicts import QualityRow


def heading(outcome: TuningOutcome) -> str:
    """Text, context, matching and budget, in a line."""
    plan = outcome.plan
    held, budget = held_equal(outcome)
    return f"{outcome.corpus} as {plan.tokenizer}, context {plan.context_length:,}; {held}; {budget} a run"


def verdict_table(outcome: ComparisonOutcome) -> Table:
    """Each architecture's quality beside the baseline's, with every interval and the verdict."""
    plan, units = outcome.plan, outcome.units
    level = f"{plan.confidence:.0%}"
    columns = (
        Column("architecture", "name"),
        Column("verdict", "verdict"),
        Column("bits per byte", unit="bit/byte", hint="mean over seeds; less is better"),
        Column("sd", unit="bit/byte", hint="standard deviation over seeds", priority=4),
        Column(f"{level} interval", unit="bit/byte", hint="of the mean, over seeds", show=_four, priority=5),
        Column("difference", unit="relative", hint=f"to {plan.baseline}; negative is better"),
        Column(
            "combined, %", unit="relative", show=percent_interval,
            hint=f"{level} interval of the difference: seeds and {units.kind}",
        ),
        Column(
            "seeds alone, %", unit="relative", show=percent_interval, priority=2,
            hint=f"{level} interval from the spread between seeds (Welch)",
        ),
        Column(
            f"{units.kind} alone, %", unit="relative", show=percent_interval, priority=3,
            hint=f"{level} interval from the spread between {units.kind} (bootstrap)",
        ),
        Column("p", hint="of no difference, two-sided", show=probability, priority=6),
        Column("Holm p", hint="p corrected for the number of architectures", show=probability),
        Column("seeds", hint="finished, of those begun", priority=1),
    )  # fmt: skip
    notes = [
        f"{row.architecture}: {_reason(row)}" for row in outcome.quality if row.reason or row.seeds_needed or row.lost
    ]
    caption = (
        f"{level} intervals of the difference to {plan.baseline}: from seeds, from {units.count:,} {units.kind} of the "
        "text, and from both combined, which decide. Differences below the margin, "
        f"± {100 * plan.margin:g} %, are ignored."
    )
    rows = sorted(outcome.quality, key=lambda row: (row.bits_per_byte is None, row.bits_per_byte))
    return table(
        "verdict", "Quality", columns, map(_verdict_row, rows), caption=caption,
        notes=[*outcome.doubts, *notes, *not_taking_part(outcome)],
    )  # fmt: skip


def accuracy_table(outcome: ComparisonOutcome) -> Table | None:
    """Each architecture's accuracy at each downstream task beside the baseline's; None if none was asked."""
    if not outcome.accuracy:
        return None
    plan = outcome.plan
    level = f"{plan.confidence:.0%}"
    columns = (
        Column("task", "name"),
        Column("architecture", "name"),
        Column("verdict", "verdict"),
        Column("accuracy", show="{:.4f}".format, hint="mean over seeds and questions; more is better"),
        Column("difference", show="{:+.4f}".format, hint=f"to {plan.baseline}"),
        Column("combined", show=_four, hint=f"{level} interval of the difference: seeds and questions"),
        Column("seeds alone", show=_four, hint=f"{level} interval (Welch)", priority=2),
        Column("questions alone", show=_four, hint=f"{level} interval, paired", priority=3),
        Column("p", hint="of no difference, two-sided", show=probability, priority=6),
        Column("Holm p", hint="p corrected for the number of architectures and tasks", show=probability),
        Column("questions", show="{:,}".format, priority=1),
        Column("seeds", show="{:,}".format, priority=1),
    )
    caption = (
        "Asked of every fresh seed; all answer the same questions. A choice that ties with others counts as a random "
        f"one. The metric is {' or '.join(JUDGED)}, whichever a task has first."
    )
    rows = (
        (
            row.task, row.architecture, row.verdict, row.accuracy, row.difference, (row.low, row.high),
            (row.seed_low, row.seed_high), (row.question_low, row.question_high), row.p, row.p_holm, row.questions,
            row.seeds,
        )
        for row in outcome.accuracy
    )  # fmt: skip
    return table("accuracy", "Downstream tasks", columns, rows, caption=caption, grouped=1)


def not_taking_part(outcome: TuningOutcome) -> list[str]:
    """A sentence for each architecture that could not be matched."""
    return [
        f"{model.architecture} takes no part: {(model.reason or 'it could not be matched').rstrip('.')}."
        for model in outcome.models
        if not model.matched
    ]


def _four(low: float, high: float) -> str:
    return interval(low, high, 4)


def _verdict_row(row: QualityRow) -> Sequence[object]:
    begun = row.seeds + row.diverged + row.lost
    ended = "".join(f", {number} {how}" for number, how in ((row.diverged, "diverged"), (row.lost, "lost")) if number)
    return (
        row.architecture, row.verdict, row.bits_per_byte, row.sd, (row.low, row.high), row.difference,
        (row.combined_low, row.combined_high), (row.seed_low, row.seed_high), (row.document_low, row.document_high),
        row.p, row.p_holm, Cell(f"{row.seeds} of {begun}{ended}" if ended else str(row.seeds), row.seeds),
    )  # fmt: skip


def _reason(row: QualityRow) -> str:
    sentences = [] if row.reason is None else [row.reason.rstrip(".") + "."]
    if row.lost and row.reason is None:
        sentences.append(f"{row.lost} seeds were lost.")
    if row.seeds_needed is not None:
        sentences.append(f"About {row.seeds_needed:,} seeds of each would decide.")
    return " ".join(sentences)


def size_table(outcome: ComparisonOutcome, rows: pd.DataFrame | None = None) -> Table:
    """Sizes and what training took, beside quality; with its rows, the spread of times is there too."""
    ranges = {} if rows is None else _training_times(rows)
    columns = (
        Column("architecture", "name"),
        Column("bits per byte", unit="bit/byte", priority=3),
        Column("parameters", unit="1", show=compact),
        Column("active", unit="1", show=compact, hint="parameters that one token uses", priority=2),
        Column("non-embedding", unit="1", show=compact, hint="active ones without embeddings and output head"),
        Column("off target", unit="relative", hint="deviation from the size to be matched", priority=4),
        Column("FLOPs a token", unit="FLOP/token", hint="of training: forward and backward", priority=5, show=_flops),
        Column("tokens", unit="token", show=compact, hint="trained on; median over seeds", priority=1),
        Column("FLOPs", unit="FLOP", hint="of training", priority=1),
        Column("seconds", unit="s", hint="of training: median over seeds, lowest and highest"),
        Column("state", unit="B", hint=f"bytes of decoding state at {outcome.plan.context_length} positions"),
        Column("changed", "list", hint="fields that differ from the preset and are not shared by all",
               priority=6),
        Column("learning rate", hint="found by tuning, or the recipe's own", show="{:.3g}".format, priority=1),
    )  # fmt: skip
    scores = {row.architecture: row.bits_per_byte for row in outcome.quality}
    spent = {row.architecture: row for row in outcome.spent}
    rates = {row.architecture: row.learning_rate for row in outcome.tuning}
    baseline = next(model for model in outcome.models if model.architecture == outcome.plan.baseline)
    lines = []
    for model in _ordered(outcome):
        name, own = model.architecture, spent.get(model.architecture)
        changed = ", ".join(
            f"{field}={value}" for field, value in model.overrides.items() if field not in baseline.overrides
        )
        marked = Cell(f"{name} (baseline)", name) if model is baseline else name
        lines.append((
            marked, scores.get(name) if model.matched else Cell("not matched", scores.get(name)),
            model.parameters, model.active_parameters, model.non_embedding_active_parameters, model.deviation,
            model.training_flops_per_token, *(
                (None, None, None)
                if own is None
                else (own.training_tokens, own.training_flops, _ranged(own.training_seconds, ranges.get(name)))
            ),
            Cell("none") if model.state_bytes is None else model.state_bytes, Cell(changed or ABSENT, changed),
            rates.get(name),
        ))  # fmt: skip
    caption = "Quality beside the size of each model and what its training took."
    return table("sizes", "Sizes and spending", columns, lines, caption=caption)


def _training_times(rows: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """The shortest and longest training of each architecture's confirming seeds, in seconds."""
    own = rows[(rows.role == "confirm") & (rows.metric == "training_seconds")].groupby("architecture").value
    return {str(name): (float(values.min()), float(values.max())) for name, values in own}


def _ranged(seconds: float | None, ends: tuple[float, float] | None) -> float | Cell | None:
    if seconds is None or ends is None:
        return seconds
    return Cell(f"{quantity(seconds, 's')} ({spread(*ends, 's')})", seconds)


def _flops(value: float) -> str:
    return quantity(value, "FLOP")


def _ordered(outcome: ComparisonOutcome) -> list[Model]:
    """The best first, and those that take no part last."""
    scores = {row.architecture: row.bits_per_byte for row in outcome.quality}

    def place(model: Model) -> tuple[bool, float]:
        score = scores.get(model.architecture)
        return not model.matched, math.inf if score is None else score

    return sorted(outcome.models, key=place)


def cost_table(outcome: ComparisonOutcome) -> Table | None:
    """Speed and memory beside the baseline's, with the noise floor; None if nothing was measured."""
    if not outcome.costs:
        return None
    columns = (
        Column("quantity", "text"),
        Column("architecture", "name"),
        Column("median", unit="base units"),
        Column("ratio", unit="1", hint=f"to {outcome.plan.baseline}; below 1 is less", show=ratio),
        Column(f"{outcome.plan.confidence:.0%} interval", unit="1", hint="of the ratio", show=ratio_interval),
        Column(
            "noise floor", unit="1", show=ratio_interval, priority=1,
            hint="ratios of the baseline to itself on this machine",
        ),
        Column("verdict", "verdict"),
    )  # fmt: skip
    metrics = list(dict.fromkeys(row.metric for row in outcome.costs))
    rows = [
        (
            row.label, row.architecture, Cell(quantity(row.value, row.unit), row.value), row.ratio,
            (row.low, row.high), (row.floor_low, row.floor_high), row.verdict,
        )
        for row in sorted(outcome.costs, key=lambda row: (metrics.index(row.metric), row.value is None, row.value))
    ]  # fmt: skip
    caption = (
        "Measured in turns and in fresh processes; less is better. Exploratory: not corrected for the number of rows."
    )
    notes = [] if outcome.withheld is None else [f"No verdict on speed: {outcome.withheld}."]
    return table("costs", "Speed and memory", columns, rows, caption=caption, notes=notes, grouped=1)


def lost_table(outcome: ComparisonOutcome) -> Table | None:
    """Every run that did not finish, with its cause; None if all finished."""
    columns = (
        Column("architecture", "name"), Column("stage", "name", priority=2), Column("seed"), Column("outcome", "text"),
        Column("cause", "text"), Column("run", "code", priority=1),
    )  # fmt: skip
    rows = [
        (cell.architecture, cell.stage, Cell(str(cell.seed), cell.seed), cell.outcome, cell.cause, cell.run_id)
        for cell in outcome.cells
        if cell.outcome != "ok"
    ]
    return table("lost", "What did not finish", columns, rows) if rows else None


def tuning_table(outcome: TuningOutcome) -> Table:
    """The learning-rate curve of each architecture, and the rate chosen."""
    columns = (
        Column("architecture", "name"),
        Column("learning rate", show="{:.3g}".format),
        Column("bits per byte", unit="bit/byte"),
        Column("seeds", "list", hint="bits per byte of each"),
    )
    rows: list[Sequence[object]] = []
    for tuning in outcome.tuning:
        for point in tuning.points:
            seeds = ("diverged or failed" if bits is None else f"{bits:.4f}" for bits in point.bits_per_byte)
            rows.append((tuning.architecture, point.learning_rate, point.mean, "  ".join(seeds)))
        chosen = f"chosen: {tuning.note or 'minimum of the parabola'}"
        rows.append((tuning.architecture, tuning.learning_rate, Cell(""), chosen))
    notes = [*outcome.doubts, *not_taking_part(outcome)]
    return table("tuning", "Learning rates", columns, rows, notes=notes, grouped=1)
