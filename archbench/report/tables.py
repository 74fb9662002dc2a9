"""The page's tables as data: each cell as it is shown, and as a plain value, base units, to sort by and to download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from archbench.presentation.quantities import (
    ABSENT,
    compact,
    count,
    interval,
    number,
    percent,
    percent_interval,
    probability,
    ratio,
    ratio_interval,
)
from archbench.report.evidence import Evidence
from archbench.study.comparison_outcome import ComparisonOutcome, Model
from archbench.study.costs import CostRow
from archbench.study.verdicts import QualityRow

Kind = Literal["name", "text", "number", "verdict", "code", "list"]


@dataclass(frozen=True)
class Column:
    """One column; ``unit`` is that of the cells' plain values, ``title`` what is read above them."""

    title: str
    kind: Kind = "number"
    unit: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """``text`` is shown; ``value`` sorts and is downloaded."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table with its heading; ``notes`` are sentences below it."""

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def verdict_table(outcome: ComparisonOutcome) -> Table:
    """Each architecture's quality beside the baseline's, with every interval and the verdict."""
    level, units = f"{outcome.plan.confidence:.0%}", outcome.units.kind
    columns = (
        Column("architecture", "name"),
        Column("verdict", "verdict"),
        Column("bits per byte", unit="bit/byte", hint="mean over seeds; less is better"),
        Column(f"{level} interval", unit="bit/byte", hint="of the mean, over seeds"),
        Column("difference", unit="relative", hint=f"to {outcome.plan.baseline}; negative is better"),
        Column("combined, %", unit="relative", hint=f"{level} interval of the difference: seeds and {units}"),
        Column("seeds alone, %", unit="relative", hint=f"{level} interval by the spread between seeds (Welch)"),
        Column(f"{units} alone, %", unit="relative", hint=f"{level} interval by the spread between {units}"),
        Column("p", hint="that there is no difference, two-sided"),
        Column("Holm p", hint="p corrected for the number of architectures"),
        Column("seeds", hint="finished of those begun"),
    )  # fmt: skip
    rows = tuple(_verdict_row(row) for row in outcome.quality)
    notes = [
        f"{row.architecture}: {_reason(row)}" for row in outcome.quality if row.reason or row.seeds_needed or row.lost
    ]
    notes += [
        f"{model.architecture} takes no part: {(model.reason or 'it could not be matched').rstrip('.')}."
        for model in outcome.models
        if not model.matched
    ]
    return Table("verdict", "Quality", "", columns, rows, tuple(notes))


def _verdict_row(row: QualityRow) -> tuple[Cell, ...]:
    begun = row.seeds + row.diverged + row.lost
    told = f"{row.seeds}" if row.seeds == begun else f"{row.seeds} of {begun}"
    return (
        Cell(row.architecture, row.architecture),
        Cell(row.verdict, row.verdict),
        Cell(number(row.bits_per_byte, "bit/byte"), row.bits_per_byte),
        Cell(interval(row.low, row.high, 4), row.low),
        Cell(percent(row.difference), row.difference),
        Cell(percent_interval(row.combined_low, row.combined_high), row.combined_low),
        Cell(percent_interval(row.seed_low, row.seed_high), row.seed_low),
        Cell(percent_interval(row.document_low, row.document_high), row.document_low),
        Cell(probability(row.p), row.p),
        Cell(probability(row.p_holm), row.p_holm),
        Cell(told, row.seeds),
    )


def _reason(row: QualityRow) -> str:
    sentences = [] if row.reason is None else [row.reason.rstrip(".") + "."]
    if row.lost and row.reason is None:
        sentences.append(f"{row.lost} seeds were lost.")
    if row.seeds_needed is not None:
        sentences.append(f"About {row.seeds_needed:,} seeds of each would decide.")
    return " ".join(sentences)


def size_table(outcome: ComparisonOutcome) -> Table:
    """Sizes, and what training spent, beside quality."""
    columns = (
        Column("architecture", "name"),
        Column("bits per byte", unit="bit/byte"),
        Column("parameters", unit="1"),
        Column("active", unit="1", hint="parameters that one token uses"),
        Column("non-embedding", unit="1", hint="active ones without embeddings and output head"),
        Column("off target", unit="relative", hint="deviation from the size to be matched"),
        Column("FLOPs a token", unit="FLOP/token", hint="of training: forward and backward"),
        Column("tokens", unit="token", hint="trained on; median over seeds"),
        Column("FLOPs", unit="FLOP", hint="of training"),
        Column("seconds", unit="s", hint="of training"),
        Column("state", unit="B", hint=f"bytes of decoding state at {outcome.plan.context_length} positions"),
        Column("changed", "list", hint="fields that differ from the preset, but for those that are the same for all"),
    )
    scores = {row.architecture: row.bits_per_byte for row in outcome.quality}
    spent = {row.architecture: row for row in outcome.spent}
    baseline = next(model for model in outcome.models if model.architecture == outcome.plan.baseline)
    rows = []
    for model in _ordered(outcome):
        own = spent.get(model.architecture)
        tokens = None if own is None else own.training_tokens
        flops = None if own is None else own.training_flops
        seconds = None if own is None else own.training_seconds
        own_fields = {name: value for name, value in model.overrides.items() if name not in baseline.overrides}
        changed = ", ".join(f"{field}={value}" for field, value in own_fields.items())
        score = scores.get(model.architecture)
        rows.append((
            Cell(model.architecture, model.architecture),
            Cell(number(score, "bit/byte") if model.matched else "not matched", score),
            Cell(compact(model.parameters), model.parameters),
            Cell(compact(model.active_parameters), model.active_parameters),
            Cell(compact(model.non_embedding_active_parameters), model.non_embedding_active_parameters),
            Cell(percent(model.deviation), model.deviation),
            Cell(number(model.training_flops_per_token, "FLOP"), model.training_flops_per_token),
            Cell(number(tokens, "token"), tokens),
            Cell(number(flops, "FLOP"), flops),
            Cell(number(seconds, "s"), seconds),
            Cell("none" if model.state_bytes is None else number(model.state_bytes, "B"), model.state_bytes),
            Cell(changed or ABSENT, changed),
        ))  # fmt: skip
    return Table(
        "sizes",
        "Sizes and spending",
        "Beside quality: what each was, and what its training spent.",
        columns,
        tuple(rows),
    )


def _ordered(outcome: ComparisonOutcome) -> list[Model]:
    names = [*outcome.names, *(model.architecture for model in outcome.models if not model.matched)]
    return sorted(outcome.models, key=lambda model: names.index(model.architecture))


def cost_table(outcome: ComparisonOutcome) -> Table | None:
    """Speed and memory beside the baseline's, with the machine's noise floor; None where nothing was measured."""
    if not outcome.costs:
        return None
    level = f"{outcome.plan.confidence:.0%}"
    columns = (
        Column("quantity", "text"),
        Column("architecture", "name"),
        Column("median", unit="base units"),
        Column("ratio", unit="1", hint=f"to {outcome.plan.baseline}; below 1 is less"),
        Column(f"{level} interval", unit="1", hint="of the ratio"),
        Column("noise floor", unit="1", hint="ratios that this machine shows where there is no difference"),
        Column("verdict", "verdict"),
    )
    metrics = list(dict.fromkeys(row.metric for row in outcome.costs))
    rows = tuple(_cost_row(row) for row in sorted(outcome.costs, key=lambda row: metrics.index(row.metric)))
    caption = (
        "Measured in turns and in fresh processes; less is better. Exploratory: not corrected for the number of rows."
    )
    return Table("costs", "Speed and memory", caption, columns, rows)


def _cost_row(row: CostRow) -> tuple[Cell, ...]:
    return (
        Cell(row.label, row.label),
        Cell(row.architecture, row.architecture),
        Cell(number(row.value, row.unit), row.value),
        Cell(ratio(row.ratio), row.ratio),
        Cell(ratio_interval(row.low, row.high), row.low),
        Cell(ratio_interval(row.floor_low, row.floor_high), row.floor_low),
        Cell(row.verdict, row.verdict),
    )


def lost_table(outcome: ComparisonOutcome) -> Table | None:
    """Every cell that did not end well, with its cause; None where all did."""
    lost = [cell for cell in outcome.cells if cell.outcome != "ok"]
    if not lost:
        return None
    columns = (
        Column("architecture", "name"), Column("stage", "text"), Column("seed"), Column("outcome", "text"),
        Column("cause", "text"), Column("run", "code"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(cell.architecture, cell.architecture), Cell(cell.stage, cell.stage), Cell(str(cell.seed), cell.seed),
            Cell(cell.outcome, cell.outcome), Cell(cell.cause or ABSENT, cell.cause),
            Cell(cell.run_id or ABSENT, cell.run_id),
        )
        for cell in lost
    )  # fmt: skip
    return Table("lost", "What did not finish", "", columns, rows)


_RUN_METRICS = (
    ("quality", "bits_per_byte", "bits per byte", "bit/byte"),
    ("train", "tokens_per_second", "tokens a second", "token/s"),
    ("train", "training_seconds", "training time", "s"),
    ("train", "peak_memory_bytes", "training memory", "B"),
    ("decode", "seconds_per_token", "decoding, a token", "s"),
)


def run_table(evidence: Evidence) -> Table | None:
    """One line a run, the newest first; a probe's hundreds of trainings are not among them. None where all are."""
    import pandas as pd

    columns = (
        Column("run", "code"),
        Column("architecture", "name"),
        Column("preset", "text"),
        Column("seed"),
        Column("parameters", unit="1"),
        Column("corpus", "text"),
        *(Column(title, unit=unit) for _, _, title, unit in _RUN_METRICS),
        Column("outcome", "text"),
    )
    rows = []
    for run_id, own in evidence.rows[evidence.rows.phase != "probe"].groupby("run_id", sort=False):
        first = own.iloc[0]
        parameters = own.parameters.max()
        size = None if pd.isna(parameters) else int(parameters)
        cells = [
            Cell(str(run_id), str(run_id)),
            Cell("kernels" if first.architecture == "none" else str(first["name"]), str(first["name"])),
            Cell(str(first.preset) if first.architecture != "none" else ABSENT, str(first.preset)),
            Cell(str(first.seed), int(first.seed)),
            Cell(count(size), size),
            Cell(_text(own.corpus), _text(own.corpus)),
        ]
        for phase, metric, _, unit in _RUN_METRICS:
            values = own[(own.phase == phase) & (own.metric == metric)].value.dropna()
            value = None if values.empty else float(values.median())
            cells.append(Cell(number(value, unit), value))
        failed = own[own.status != "ok"]
        diverged = own[own.metric == "diverged"]
        ended = "finished" if failed.empty else f"failed in {failed.phase.iloc[0]}: {failed.status.iloc[0]}"
        ended = ended if diverged.empty else f"diverged at step {diverged.value.iloc[0]:.0f}"
        rows.append((*cells, Cell(ended, ended)))
    if not rows:
        return None
    return Table("runs", "Runs", "Medians over repeats; speeds of all cases of a run together.", columns, tuple(rows))


def _text(column: object) -> str:
    values = [str(value) for value in dict.fromkeys(column.dropna())]  # type: ignore[attr-defined]
    return ", ".join(values) or ABSENT
