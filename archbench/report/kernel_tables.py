"""Tables of the kernel phase: median and spread of each candidate, case by case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archbench.presentation.quantities import counted
from archbench.presentation.tables import Cell, Column, Table, table

if TYPE_CHECKING:
    import pandas as pd

CONVENTION = (
    "TFLOP/s count only visible (query, key) pairs, so causal counts half; backward counts 2.5 × forward. "
    "± is half the IQR."
)
ATTENTION = "causal_attention"
_ATTENTION = {
    "T": "context_length", "B": "batch_size", "H": "query_heads", "G": "kv_heads", "D": "head_width", "W": "window",
}  # fmt: skip
_LOSS = {"N": "context_length", "C": "model_width", "V": "vocab_size"}
_WHOLE = "cross_entropy"
"""The loss of all logits at once, with which the others are compared."""

LETTERS = (
    "B sequences, T positions, H query heads, G key/value heads, D head width, W window; of losses, N positions, "
    "C model width, V vocabulary."
)

CASE = [*_ATTENTION.values(), "model_width", "vocab_size"]

_COSTS = (
    Column("memory", unit="B", hint="beyond the inputs", priority=2),
    Column("error", show="{:.1e}".format, priority=5), Column("gradient error", show="{:.1e}".format, priority=6),
)  # fmt: skip


def _time(title: str) -> Column:
    return Column(title, unit="s")


def _reach() -> Column:
    return Column("±", unit="relative", show="{:.0%}".format, priority=4)


def _speed() -> Column:
    return Column("TFLOP/s", unit="FLOP/s", show=lambda value: f"{value / 1e12:.3g}", priority=3)


def kernel_tables(rows: pd.DataFrame) -> list[Table]:
    """The tables of attention and of losses; those without rows are left out."""
    known = rows[rows.value.notna()]
    attention, losses = known[known.operation == ATTENTION], known[known.operation != ATTENTION]
    made = [_attention_table(attention)] if len(attention) else []
    return made + ([_loss_table(losses)] if len(losses) else [])


def case_name(row: Mapping[Any, Any]) -> str:
    """``sdpa T 128 B 1 …``: the candidate and its sizes, of a row of the kernel phase; "" for any other."""
    import pandas as pd

    if pd.isna(row["operation"]):
        return ""
    attention = row["operation"] == ATTENTION
    sizes = [f"{letter} {_size(row[name])}" for letter, name in (_ATTENTION if attention else _LOSS).items()]
    return " ".join([row["attention"] if attention else row["operation"], *sizes])


@dataclass(frozen=True)
class _LeftOut:
    case: str
    candidate: str
    what: str
    reason: str


@dataclass(frozen=True)
class _Facts:
    left_out: Sequence[_LeftOut] = ()


@dataclass(frozen=True)
class _Described:
    """The JSON file of a kernel run, as far as it says what was left out."""

    facts: _Facts = _Facts()


def not_measured(rows: pd.DataFrame, places: Sequence[str]) -> Iterator[str]:
    """A sentence for each reason why there is no value, as the runs' files in or beside ``places`` give it."""
    missing = rows[rows.metric.isin(["forward_seconds", "backward_seconds"]) & rows.value.isna()]
    for run_id, own in missing.groupby("run_id", sort=False):
        known = reasons([vars(one) for one in _left_out(str(run_id), places)])
        yield from known
        if known:
            continue
        candidates = own.attention.where(own.operation == ATTENTION, own.operation)
        for (candidate, metric), without in own.groupby([candidates, "metric"], sort=False):
            cases = without.groupby(CASE, dropna=False).ngroups
            yield (
                f"Not measured: {candidate}, {str(metric).removesuffix('_seconds')} ({counted(cases, 'case')}): "
                f"without {run_id}.json beside the rows the reason is not known."
            )


def _left_out(run_id: str, places: Sequence[str]) -> Sequence[_LeftOut]:
    from archbench.errors import StorageError
    from archbench.files.loader import read_model
    from archbench.results.run_files import description_beside

    try:
        file = description_beside(run_id, places)
        return read_model(_Described, file, sealing="optional", next_step="").facts.left_out if file else ()
    except StorageError:  # rows have their own checksum; archbench fsck says more
        return ()


def reasons(left_out: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not be measured, and why: a line for each reason, with its cases if they are few."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for one in left_out:
        grouped.setdefault((one["candidate"], one["what"], one["reason"]), []).append(one["case"])
    lines = []
    for (candidate, what, reason), cases in grouped.items():
        where = f"{len(cases)} cases" if len(cases) > 2 else "; ".join(cases)
        lines.append(f"Not measured: {candidate}, {what} ({where}): {reason}.")
    return lines


def _attention_table(rows: pd.DataFrame) -> Table:
    varying, fixed = _sizes(rows, _ATTENTION)
    columns = [
        *(Column(letter, "name") for letter in varying), Column("attention", "name"),
        _time("forward"), _reach(), _speed(), _time("backward"), _reach(), _speed(), *_COSTS, *_host_column(rows),
    ]  # fmt: skip
    lines = [
        [
            *label, *_median(_values(trial, "forward_seconds")), _first(trial, "forward_flops_per_second"),
            *_median(_values(trial, "backward_seconds")), _first(trial, "backward_flops_per_second"), *_costs(trial),
            *([_host(trial)] if _host_column(rows) else []),
        ]
        for label, _, trial in _trials(rows, varying, "attention")
    ]  # fmt: skip
    title, notes = f"Causal attention{fixed}", _waits(rows, "attention")
    return table("attention", title, columns, lines, caption=CONVENTION, notes=notes, grouped=len(varying))


def _loss_table(rows: pd.DataFrame) -> Table:
    varying, fixed = _sizes(rows, _LOSS)
    columns = [
        *(Column(letter, "name") for letter in varying), Column("loss", "name"), _time("forward"), _time("backward"),
        _time("together"), _reach(), _speed(), *_COSTS, Column("time", unit="1", show="{:.2f} ×".format),
        Column("memory", unit="1", show="{:.2f} ×".format, priority=1), *_host_column(rows),
    ]  # fmt: skip
    lines = []
    for label, case, trial in _trials(rows, varying, "operation"):
        whole = case[case.operation == _WHOLE]
        lines.append([
            *label, _median(_values(trial, "forward_seconds"))[0], _median(_values(trial, "backward_seconds"))[0],
            *_median(_together(trial)), _first(trial, "flops_per_second"), *_costs(trial),
            _ratio(_together(trial), _together(whole)),
            _ratio(_values(trial, "peak_extra_bytes"), _values(whole, "peak_extra_bytes")),
            *([_host(trial)] if _host_column(rows) else []),
        ])  # fmt: skip
    title = f"Loss, and its time and memory over those of all logits at once{fixed}"
    return table("losses", title, columns, lines, notes=_waits(rows, "operation"), grouped=len(varying))


def _host_column(rows: pd.DataFrame) -> list[Column]:
    """A GPU's table also has what the host takes to submit both passes."""
    if not (rows.metric == "host_forward_seconds").any():
        return []
    return [Column("host", unit="s", hint="to submit both passes, beside the GPU's own time", priority=4)]


def _host(trial: pd.DataFrame) -> float | None:
    seconds = _values(trial, "host_forward_seconds").add(_values(trial, "host_backward_seconds"), fill_value=0.0)
    return None if seconds.empty else float(seconds.median())


def _waits(rows: pd.DataFrame, candidate: str) -> list[str]:
    """Which candidates' times contain the host's."""
    waited = rows[(rows.metric == "waits_for_host") & (rows.value > 0)]
    names = ", ".join(sorted(map(str, waited[candidate].unique())))
    return [f"{names}: read from the GPU amid their work, so their times contain the host's."] if names else []


def _sizes(rows: pd.DataFrame, letters: dict[str, str]) -> tuple[dict[str, str], str]:
    """The sizes that differ between cases, as columns, and in words those that do not."""
    varying = {letter: name for letter, name in letters.items() if rows[name].nunique(dropna=False) > 1}
    fixed = {letter: _size(rows[name].iloc[0]) for letter, name in letters.items() if letter not in varying}
    words = [f"{letter} {size}" for letter, size in fixed.items() if not (letter == "W" and size == "none")]
    return varying, f": {', '.join(words)}" if words else ""


def _trials(
    rows: pd.DataFrame, varying: dict[str, str], candidate: str
) -> Iterator[tuple[list[Cell], pd.DataFrame, pd.DataFrame]]:
    """Label cells, rows of the case and rows of the candidate, the fastest first."""
    for _, case in rows.groupby(list(varying.values()) or ["phase"], sort=False, dropna=False):
        sizes = [_size(case[name].iloc[0]) for name in varying.values()]
        measured = sorted(case.groupby(candidate, sort=False), key=lambda one: _speed_rank(one[1]))
        for name, trial in measured:
            own = str(name)
            marked = f"{own} (baseline)" if own == _WHOLE else own
            yield [*(Cell(size, size) for size in sizes), Cell(marked, own)], case, trial


def _speed_rank(trial: pd.DataFrame) -> tuple[bool, float]:
    """Seconds of forward and backward; after those, of forward alone; infinite if neither was measured."""
    both = _together(trial)
    seconds = _values(trial, "forward_seconds") if both.empty else both
    return both.empty, float(seconds.median()) if len(seconds) else math.inf


def _size(value: Any) -> str:
    import pandas as pd

    return "none" if pd.isna(value) else str(int(value))


def _values(trial: pd.DataFrame, metric: str) -> pd.Series[float]:
    return trial[trial.metric == metric].set_index("repeat").value


def _together(trial: pd.DataFrame) -> pd.Series[float]:
    """Seconds of forward and backward of each sample."""
    return (_values(trial, "forward_seconds") + _values(trial, "backward_seconds")).dropna()


def _first(trial: pd.DataFrame, metric: str) -> float | None:
    values = _values(trial, metric)
    return None if values.empty else float(values.iloc[0])


def _median(seconds: pd.Series[float]) -> tuple[float | None, float | Cell]:
    """Median, and half the interquartile range as a share of it."""
    if seconds.empty:
        return None, Cell("")
    median, reach = seconds.median(), (seconds.quantile(0.75) - seconds.quantile(0.25)) / 2
    return float(median), float(reach / median) if len(seconds) >= 4 else Cell("")


def _costs(trial: pd.DataFrame) -> list[float | None]:
    """Memory beyond the inputs, and errors of output and gradients."""
    return [_first(trial, metric) for metric in ("peak_extra_bytes", "output_error", "gradient_error")]


def _ratio(own: pd.Series[float], whole: pd.Series[float]) -> float | Cell:
    """Median over paired samples; memory has a single one."""
    ratio = (own / whole).median() if len(whole) else float("nan")
    return Cell("") if ratio != ratio else float(ratio)
