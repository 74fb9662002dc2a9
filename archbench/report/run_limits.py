"""One run beside the limits of its machine, its memory, and comparable reference runs, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.presentation.quantities import quantity, ratio
from archbench.presentation.tables import Cell, Column, Table, table

if TYPE_CHECKING:
    import pandas as pd

Peaks = Mapping[str, float]
"""What ``archbench doctor --json`` measured, in FLOP/s and B/s: ``matrix product, float32``, ``memory bandwidth``."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_BANDWIDTH = "memory bandwidth"
REFERENCES = Path("results/reference")

COMPARED = (
    ("quality", "bits_per_byte", "bits per byte", "bit/byte"),
    ("train", "step_seconds", "training update", "s"),
    ("train", "peak_memory_bytes", "peak memory of training", "B"),
    ("prefill", "seconds_to_first_token", "first token", "s"),
    ("decode", "seconds_per_token", "next token", "s"),
    ("decode", "cache_bytes", "decoding state", "B"),
)
_SAME = ("architecture", "preset", "corpus", "tokenizer", "context_length", "tokens_seen", "batch_size", "dtype")
"""What two trainings share, where their numbers may be compared."""


def peaks_in(file: str | Path) -> dict[str, float]:
    """The peaks that ``archbench doctor --json`` measured.

    Raises:
        StorageError: the file is missing or damaged, or has no peaks.
    """
    from archbench.errors import StorageError
    from archbench.files.loader import read_lines

    step = f"Make it on the same machine: archbench doctor --json > {file}"
    lines = read_lines(file, error=StorageError, next_step=step)
    found = {
        str(line["what"]): float(line["measured"])
        for line in lines
        if line.get("kind") == "peak" and isinstance(line.get("measured"), int | float) and "what" in line
    }
    if not found:
        raise StorageError(str(file), "it has no peaks", step)
    return found


def value_of(rows: pd.DataFrame, phase: str, metric: str) -> float | None:
    """The median of a measurement; None if there is none."""
    values = rows.value[(rows.phase == phase) & (rows.metric == metric)].dropna()
    return None if values.empty else float(values.median())


def case_of(rows: pd.DataFrame) -> str:
    """Prompt and batch of rows that share them, in words; "" without a prompt."""
    if rows.prompt_length.isna().any():
        return ""
    return f"{int(rows.prompt_length.iloc[0])} tokens × {int(rows.batch_size.iloc[0])}"


def limit_table(rows: pd.DataFrame, peaks: Peaks | None) -> Table | None:
    """FLOP/s and bytes/s of one run as shares of what the machine can do; None if neither was measured."""
    columns = (
        Column("measured", "name"), Column("reached"), Column("limit", "text"), Column("at most"),
        Column("share", show="{:.0%}".format, hint="reached / at most"),
    )  # fmt: skip
    dtype = str(rows.dtype.dropna().iloc[0]) if rows.dtype.notna().any() else ""
    lines = [*_training(rows, dtype, peaks or {}), *_inference(rows, dtype, peaks or {})]
    if not lines:
        return None
    notes = [
        "Prefill counts a third of training's FLOPs a token. Decoding is estimated from below: each step reads its "
        "weights and the whole state once."
    ]
    if peaks is None and value_of(rows, "decode", "bandwidth_measured") is None:
        notes.append(
            "The memory bandwidth is not known here: after archbench doctor on the same machine, with as many threads, "
            "runs have it. archbench doctor --json > peaks.jsonl, and archbench report --peaks peaks.jsonl, show "
            "shares of it for earlier ones."
        )
    caption = "A small share is room for faster code, or work that is too small to fill the machine."
    return table("limits", "Beside the limits of the machine", columns, lines, caption=caption, notes=notes)


def _line(what: str, reached: float, unit: str, limit: str, most: float | None) -> Sequence[Any]:
    share = None if not most else reached / most
    at_most = None if most is None else Cell(quantity(most, unit), most)
    return what, Cell(quantity(reached, unit), reached), limit, at_most, share


def _training(rows: pd.DataFrame, dtype: str, peaks: Peaks) -> Iterator[Sequence[Any]]:
    reached = value_of(rows, "train", "model_flops_per_second")
    if reached is None:
        return
    limits = {
        f"matrix product of this run, {dtype}": value_of(rows, "train", "peak_flops_measured"),
        f"data sheet, {dtype}": value_of(rows, "train", "peak_flops_published"),
        f"matrix product of archbench doctor, {dtype}": peaks.get(f"matrix product, {dtype}"),
    }
    for limit, most in limits.items():
        if most is not None:
            yield _line("training", reached, "FLOP/s", limit, most)


def _inference(rows: pd.DataFrame, dtype: str, peaks: Peaks) -> Iterator[Sequence[Any]]:
    flops, product = value_of(rows, "train", "flops_per_token"), value_of(rows, "train", "peak_flops_measured")
    measured = value_of(rows, "decode", "bandwidth_measured")
    cases = rows[rows.phase.isin(["prefill", "decode"]) & rows.prompt_length.notna()]
    for (phase, *_), own in cases.groupby(["phase", "batch_size", "prompt_length"], sort=False):
        speed, seconds = value_of(own, "prefill", "tokens_per_second"), value_of(own, "decode", "seconds_per_token")
        size, at = rows.parameters.max(), case_of(own)
        if phase == "prefill" and flops and speed:
            yield _line(f"prefill, {at}", flops / 3 * speed, "FLOP/s", f"matrix product of this run, {dtype}", product)
        if phase == "decode" and seconds and size == size and dtype in _BYTES:
            # Earlier archbenches did not count what a step reads.
            every = float(size) * _BYTES[dtype] + (value_of(own, "decode", "cache_bytes") or 0.0)
            read = value_of(own, "decode", "step_bytes") or every
            yield _line(f"decoding after {at}", read / seconds, "B/s", _BANDWIDTH, peaks.get(_BANDWIDTH) or measured)


def memory_table(rows: pd.DataFrame) -> Table | None:
    """Memory of each phase of one run; None if none was measured."""
    columns = (
        Column("phase", "name"), Column("at the start", unit="B", hint="of the process, before the phase"),
        Column("new", unit="B", hint="peak − start"), Column("peak", unit="B"),
        Column("reserved", unit="B", hint="by the allocator of a GPU"),
    )  # fmt: skip
    lines = []
    for phase in ("train", "quality", "prefill", "decode", "serve"):
        names = ("baseline_memory_bytes", "peak_memory_bytes", "reserved_memory_bytes")
        start, peak, reserved = (value_of(rows, phase, name) for name in names)
        if peak is not None:
            lines.append((phase, start, None if start is None else peak - start, peak, reserved))
    caption = "Highest resident memory of the process, or what torch allocated on a GPU."
    return table("memory", "Memory", columns, lines, caption=caption) if lines else None


def reference_table(rows: pd.DataFrame, folder: Path) -> Table | None:
    """One run beside the committed runs of the same architecture, size, text and budget; None if there are none."""
    found = _comparable(rows, folder)
    if found is None:
        return None
    same = set(found.device_name.dropna()) == set(rows.device_name.dropna())
    columns = (
        Column("quantity", "name"), Column("case", "text"), Column("this run"), Column("reference"),
        Column("range", "text", hint="lowest and highest reference run"), Column("ratio", unit="1", show=ratio),
    )  # fmt: skip
    lines = []
    for phase, metric, label, unit in COMPARED:
        own, theirs = _by_case(rows, phase, metric), _by_case(found, phase, metric)
        for case in own.keys() & theirs.keys():
            mine, medians = own[case][0], sorted(theirs[case])
            median = medians[len(medians) // 2]
            ends = f"{quantity(medians[0], unit)} – {quantity(medians[-1], unit)}" if len(medians) > 1 else ""
            shown = (Cell(quantity(value, unit), value) for value in (mine, median))
            lines.append((label, case, *shown, ends, mine / median if median else None))
    machine = (
        "On the same kind of machine, not on the same day."
        if same
        else f"Speed and memory of the references are of another machine ({', '.join(found.device_name.unique())})."
    )
    runs = ", ".join(found.run_id.drop_duplicates())
    return table(
        "reference", "Beside the committed reference", columns, sorted(lines, key=_order),
        caption=f"Same architecture, size, text, context, batch, dtype and training tokens. {machine}",
        notes=[f"{found.run_id.nunique()} reference runs: {runs}."],
    )  # fmt: skip


def _order(line: Sequence[Any]) -> tuple[int, str]:
    return [label for _, _, label, _ in COMPARED].index(line[0]), line[1]


def _by_case(rows: pd.DataFrame, phase: str, metric: str) -> dict[str, list[float]]:
    """Batch and prompt in words -> the median of each run."""
    own = rows[(rows.phase == phase) & (rows.metric == metric) & rows.value.notna()]
    found: dict[str, list[float]] = {}
    for _, run in own.groupby(["batch_size", "prompt_length", "run_id"], dropna=False):
        found.setdefault(case_of(run), []).append(float(run.value.median()))
    return found


def _comparable(rows: pd.DataFrame, folder: Path) -> pd.DataFrame | None:
    from archbench.results.reading import read_results

    mine = _traits(rows)
    files = sorted(file for pattern in ("*.parquet", "compare-*/runs.parquet") for file in folder.glob(pattern))
    if mine is None or not files:
        return None
    wanted = {"architecture": mine[0], "preset": mine[1]}
    known = read_results(files, wanted)
    own = set(rows.run_id)
    alike = [run for run, theirs in known.groupby("run_id") if run not in own and _traits(theirs) == mine]
    return known[known.run_id.isin(alike)] if alike else None


def _traits(rows: pd.DataFrame) -> tuple[Any, ...] | None:
    """What a run trained, on what, and how much; None for one that trained nothing."""
    trained = rows[(rows.phase == "train") & (rows.metric == "training_seconds")]
    return None if trained.empty else tuple(trained[list(_SAME)].fillna("").iloc[0])
