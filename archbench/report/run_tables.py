"""Tables of runs, from tidy rows: one run in full, one line for each run, and runs side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from archbench.presentation.quantities import ABSENT, count, number, quantity, spread
from archbench.presentation.tables import Cell, Column, Table, table
from archbench.report.basis import basis, energy_note, phases_disturbed
from archbench.report.kernel_tables import case_name
from archbench.results.doubts import doubts
from archbench.results.schema import INTERRUPTED

if TYPE_CHECKING:
    import pandas as pd

    from archbench.report.evidence import Evidence

_RUN_METRICS = (
    ("quality", "bits_per_byte", "bits per byte", "bit/byte"),
    ("train", "tokens_per_second", "tokens per second", "token/s"),
    ("train", "training_seconds", "training time", "s"),
    ("train", "peak_memory_bytes", "training memory", "B"),
    ("decode", "seconds_per_token", "decoding, a token", "s"),
)

_OF_RUN = [
    "run_id",
    "name",
    "architecture",
    "preset",
    "seed",
    "parameters",
    "corpus",
    "phase",
    "metric",
    "value",
    "status",
    "conformance",
    "contaminated",
]
"""Columns that a line of the table of runs needs."""

_ONCE = ("preset", "seed", "parameters", "corpus", "outcome", "checks", "contaminated")
"""Titles in the table of runs that need no column where all runs share the value."""

_SIDE_BY_SIDE = (
    ("bits per byte", 0, "quality", "bits_per_byte", "bit/byte"),
    ("training tokens/s", 1, "train", "tokens_per_second", "token/s"),
    ("peak memory", 2, "train", "peak_memory_bytes", "B"),
    ("first token", 4, "prefill", "seconds_to_first_token", "s"),
    ("next token", 3, "decode", "seconds_per_token", "s"),
    ("state", 5, "decode", "cache_bytes", "B"),
)
"""Title, priority, phase, metric and unit; prefill and decode with the longest prompt and the smallest batch."""

_SUMMARY = (
    ("quality", "bits per byte", "bits_per_byte", "bit/byte"),
    ("quality", "perplexity", "perplexity", "1"),
    ("quality", "loss", "loss", "nats/token"),
    ("train", "step", "step_seconds", "s"),
    ("train", "first step", "first_step_seconds", "s"),
    ("train", "throughput", "tokens_per_second", "token/s"),
    ("train", "model FLOP/s", "model_flops_per_second", "FLOP/s"),
    ("train", "peak memory", "peak_memory_bytes", "B"),
    ("train", "energy", "joules_per_token", "J/token"),
    ("prefill", "{P:.0f}-token prompt × {B:.0f}", "seconds_to_first_token", "s"),
    ("prefill", "energy, {P:.0f}-token prompt × {B:.0f}", "joules_per_token", "J/token"),
    ("prefill", "peak memory", "peak_memory_bytes", "B"),
    ("decode", "token after {P:.0f} × {B:.0f}", "seconds_per_token", "s"),
    ("decode", "replayed, after {P:.0f} × {B:.0f}", "graph_seconds_per_token", "s"),
    ("decode", "energy after {P:.0f} × {B:.0f}", "joules_per_token", "J/token"),
    ("decode", "cache", "cache_bytes_per_token", "B/token"),
    ("decode", "peak memory", "peak_memory_bytes", "B"),
)
"""Phase, name, metric and unit of the lines; a name with B and P has a line for each batch and prompt."""

_MEASURED = ("train", "quality", "prefill", "decode")

CHANGING = ("loss", "learning_rate", "grad_norm", "validation_loss", "validation_bits_per_byte")
"""Training metrics that change with the step; they are shown by their last value."""


def run_table(evidence: Evidence) -> Table | None:
    """One line for each run, the best of each text first; None if all are trainings of a probe, which are hundreds."""
    columns = (
        Column("run", "code"),
        Column("architecture", "name"),
        Column("preset", "text"),
        Column("seed"),
        Column("parameters", unit="1", show=count),
        Column("corpus", "text"),
        *(Column(title, unit=unit) for _, _, title, unit in _RUN_METRICS),
        Column("outcome", "text"),
        Column("checks", "text", hint="level of the conformance checks passed, or unchecked"),
        Column("contaminated", "text", hint="phases that other work on the machine disturbed"),
    )
    runs = evidence.rows.loc[evidence.rows.phase != "probe", _OF_RUN].groupby("run_id", sort=False)
    rows = sorted((_run(str(run_id), own) for run_id, own in runs), key=_best_first)
    caption = (
        "The best of each text first. Medians over repeats, with half the interquartile range and the number of "
        "samples; speeds of all cases of a run together."
    )
    if not rows:
        return None
    made = table("runs", "Runs", columns, rows, caption=caption, notes=doubts(evidence.rows))
    return _without_constants(made) if len(rows) > 1 else made


def _without_constants(made: Table) -> Table:
    """Without the columns of :data:`_ONCE` that say the same of every run: a note says it."""
    shared = {
        place: f"{column.title} {made.rows[0][place].text}"
        for place, column in enumerate(made.columns)
        if column.title in _ONCE and len({row[place].text for row in made.rows}) == 1
    }

    def kept(line: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(one for place, one in enumerate(line) if place not in shared)

    notes = (f"In every run: {', '.join(shared.values())}.", *made.notes) if shared else made.notes
    return replace(made, columns=kept(made.columns), rows=tuple(map(kept, made.rows)), notes=notes)


def _run(run_id: str, own: pd.DataFrame) -> list[Any]:
    first, modelled = own.iloc[0], own.architecture.iloc[0] != "none"
    medians = [
        _with_spread(own.value[(own.phase == phase) & (own.metric == metric)].dropna(), unit)
        for phase, metric, _, unit in _RUN_METRICS
    ]
    failed, diverged = own[own.status != "ok"], own[own.metric == "diverged"]
    how = "interrupted" if (failed.metric == INTERRUPTED).any() else "failed"
    ended = "finished" if failed.empty else f"{how} in {failed.phase.iloc[0]}: {failed.status.iloc[0]}"
    ended = ended if diverged.empty else f"diverged at step {diverged.value.iloc[0]:.0f}"
    return [
        run_id, Cell(str(first["name"]) if modelled else "kernels", str(first["name"])),
        Cell(str(first.preset) if modelled else ABSENT, str(first.preset)), Cell(str(first.seed), int(first.seed)),
        integer(own.parameters.max()), ", ".join(map(str, own.corpus.dropna().unique())) or ABSENT,
        *medians, ended, checks(own), ", ".join(phases_disturbed(own)) or "none found",
    ]  # fmt: skip


def _best_first(row: Sequence[Any]) -> tuple[str, bool, float]:
    score = row[6]
    return row[5], score is None, 0.0 if score is None else score.value


def _with_spread(values: pd.Series[float], unit: str) -> Cell | None:
    """The median, half the interquartile range as a share of it, and the number of samples."""
    if values.empty:
        return None
    median, reach = float(values.median()), float(values.quantile(0.75) - values.quantile(0.25)) / 2
    spread = f" ± {reach / median:.0%} ({len(values):,})" if len(values) > 1 and median else ""
    return Cell(number(median, unit) + spread, median)


def checks(rows: pd.DataFrame) -> str:
    """The conformance of a run in a word: the level passed, unchecked, or what failed."""
    known = rows.conformance.dropna()
    if known.empty:
        return "not known"
    found = str(known.iloc[0])
    return f"level {found}" if found.isdecimal() else found


def side_by_side(frames: Sequence[pd.DataFrame]) -> Table:
    """Finished runs side by side, the best first."""
    frames = sorted(frames, key=lambda frame: _longest(frame, "quality", "bits_per_byte", "") or math.inf)
    import pandas as pd

    seeds = {int(frame.seed.iloc[0]) for frame in frames}
    several_presets = len({frame.preset.iloc[0] for frame in frames}) > 1
    columns = [Column("", "name"), Column("parameters", show=count)]
    columns += [Column(title, unit=unit, priority=priority) for title, priority, _, _, unit in _SIDE_BY_SIDE]
    rows = []
    for frame in frames:
        first = frame.iloc[0]
        name = first.architecture + (f" {first.preset}" if several_presets else "")
        name += f" seed {first.seed}" if len(seeds) > 1 else ""
        rows.append([name, integer(first.parameters), *(_longest(frame, *which) for _, _, *which in _SIDE_BY_SIDE)])
    note = "Peak memory: of training."
    decoded = frames[0][frames[0].phase == "decode"].dropna(subset=["prompt_length"])
    if len(decoded):
        B, P = int(decoded.batch_size.min()), int(decoded.prompt_length.max())
        note += f" First and next token, and the state that decoding keeps: after {P} tokens × {B}."
    if len(seeds) == 1:
        note += " One seed: a difference in bits/byte may be chance (--seed 1 --seed 2 measures more)."
    doubtful = [doubt for frame in frames for doubt in doubts(frame)]
    everything = pd.concat([frame.assign(name=frame.architecture) for frame in frames])
    notes = [*doubtful, note, *basis(everything[everything.phase.isin(_MEASURED)])]
    return table("runs", "", columns, rows, notes=notes)


def _longest(frame: pd.DataFrame, phase: str, metric: str, unit: str) -> float | None:
    rows = frame[(frame.phase == phase) & (frame.metric == metric)].dropna(subset=["value"])
    if rows.prompt_length.notna().any():
        rows = rows[rows.batch_size == rows.batch_size.min()]
        rows = rows[rows.prompt_length == rows.prompt_length.max()]
    return None if rows.empty else float(rows.value.median())


def summary_table(frame: pd.DataFrame) -> Table:
    """The main measurements of one run: median, IQR, number of samples and a remark; a disturbed phase has a star."""
    columns = (
        Column("", "name"), Column("measured", "name"), Column("median", show=str), Column("IQR", "name", priority=2),
        Column("n", priority=1), Column("", "text"),
    )  # fmt: skip
    lines = list(_summary(frame))
    starred = any(phase.endswith(_STAR) for phase, *_ in lines)
    notes = [f"{_STAR.strip()} {_DISTURBED}"] if starred else []
    return table("summary", "", columns, lines, notes=[*notes, *energy_note(frame)], grouped=1)


def page_summary(frame: pd.DataFrame) -> Table:
    """The same with a title, and a name for each column, as a page needs it."""
    made = summary_table(frame)
    named = (Column("phase", "text"), *made.columns[1:-1], Column("note", "text"))
    return replace(made, title="What was measured", columns=named)


_STAR = " *"
_DISTURBED = "Other work disturbed the machine: times here are contaminated. Losses do not depend on it."


def _summary(frame: pd.DataFrame) -> Iterator[Sequence[Any]]:
    disturbed = {phase for phase in phases_disturbed(frame) if phase != "quality"}  # it shows no times
    for phase, name, metric, unit in _SUMMARY:
        own = frame[frame.phase == phase]
        cases = [((0, 0), own)] if "{" not in name else own.groupby(["batch_size", "prompt_length"])
        for (B, P), rows in cases:
            values = rows[rows.metric == metric].value.dropna()
            if len(values):
                low, high = (float(values.quantile(share)) for share in (0.25, 0.75))
                iqr = spread(low, high, unit) if len(values) >= 4 else ""
                median = quantity(float(values.median()), unit)
                star = _STAR if phase in disturbed else ""
                yield phase + star, name.format(B=B, P=P), median, iqr, len(values), _remark(rows, metric)


def _remark(rows: pd.DataFrame, metric: str) -> str:
    """The text beside a measurement."""

    def last(other: str) -> float | None:
        values = rows[rows.metric == other].value.dropna()
        return float(values.iloc[-1]) if len(values) else None

    match metric:
        case "perplexity":
            return "per token"
        case "first_step_seconds":
            return "kept apart"
        case "step_seconds":
            return f"{count(last('steps'))} steps" + (", from a graph" if last("graph_captured") else "")
        case "model_flops_per_second":
            return "" if (mfu := last("mfu")) is None else f"MFU {mfu:.0%}"
        case "peak_memory_bytes":
            peak, baseline = last(metric), last("baseline_memory_bytes")
            return "" if peak is None or baseline is None else f"{quantity(peak - baseline, 'B')} new"
        case "seconds_to_first_token" | "seconds_per_token" | "graph_seconds_per_token":
            graph = "graph_" if metric.startswith("graph_") else ""
            used = "" if (mbu := last(f"{graph}mbu")) is None else f", MBU {mbu:.0%}"
            return quantity(last(f"{graph}tokens_per_second"), "token/s") + used
    return ""


def measurement_table(rows: pd.DataFrame) -> Table:
    """Every measurement of one run: median, IQR, number of repeats, and whether other work disturbed it."""
    columns = (
        Column("phase", "name"), Column("metric", "name"), Column("batch × prompt", "name"),
        Column("value", show=str), Column("IQR", "name", priority=3), Column("n", priority=2),
        Column("remark", "name", priority=1),
    )  # fmt: skip
    disturbed = phases_disturbed(rows)
    lines = [
        (
            line["phase"], line["metric"], "" if line["prompt_length"] is None else _case(line),
            quantity(line["median"], line["unit"]), _iqr(line), line["n"],
            "contaminated" if line["phase"] in disturbed else "",
        )
        for line in summarise(rows)
    ]  # fmt: skip
    return table("measurements", "", columns, lines, grouped=1)


def _case(line: dict[str, Any]) -> str:
    return f"{line['batch_size']} × {line['prompt_length']}"


def _iqr(line: dict[str, Any]) -> str:
    if line["last"]:
        return "the last one"
    return "" if line["lower"] is None else spread(line["lower"], line["upper"], line["unit"])


def summarise(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A dictionary for each measurement of one run, in order: median, quartiles and number of repeats.

    Values are in the row's unit. ``median`` is the last value for metrics that change with the step. Null values are
    left out; a measurement that has only those has a null ``median`` and n = 0.
    """
    lines = []
    keys = ["phase", "metric", "unit", "batch_size", "prompt_length"]
    for (phase, metric, unit, B, P), group in rows.groupby(keys, sort=False, dropna=False):
        values = group.value.dropna()
        changing = phase == "train" and metric in CHANGING
        spreads = not changing and len(values) > 1
        lines.append({
            "phase": phase, "metric": metric, "unit": unit, "batch_size": integer(B), "prompt_length": integer(P),
            "median": None if values.empty else float(values.iloc[-1] if changing else values.median()),
            "lower": float(values.quantile(0.25)) if spreads else None,
            "upper": float(values.quantile(0.75)) if spreads else None,
            "n": len(values), "last": changing and len(values) > 1,
        })  # fmt: skip
    return lines


def raw_table(frame: pd.DataFrame) -> Table:
    """Every row."""
    cases = [Column("case", "name", priority=2)] if frame.operation.notna().any() else []
    names = {"architecture": 4, "preset": 7, "seed": 6, "phase": 1, "metric": 0}
    columns = [
        Column("run", "name", priority=5),
        *(Column(name, "number" if name == "seed" else "name", show=str, priority=at) for name, at in names.items()),
        *cases, Column("batch", priority=3), Column("prompt", priority=3), Column("repeat", priority=3),
        Column("value", show=str),
    ]  # fmt: skip
    rows = [
        [
            row["run_id"], *(row[name] for name in names), *([case_name(row)] if cases else []),
            *(_blank(integer(row[name])) for name in ("batch_size", "prompt_length")), int(row["repeat"]),
            quantity(row["value"], row["unit"]),
        ]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    return table("rows", "", columns, rows)


def _blank(value: int | None) -> Cell:
    return Cell("" if value is None else str(value), value)


def integer(value: Any) -> int | None:
    """``value`` as a whole number; None for a missing value of pandas."""
    import pandas as pd

    return None if pd.isna(value) else int(value)
