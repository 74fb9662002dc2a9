"""The kernel phase as tables: medians and spread of each candidate, case by case, and what could not run, with why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.cli.output import PIPE_WIDTH, console, table
from archbench.presentation.quantities import quantity

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

CONVENTION = (
    "TFLOP/s count visible (query, key) pairs only, so causal counts as half; backward counts 2.5 × forward. "
    "± is half the interquartile range."
)
_ATTENTION = {
    "T": "context_length",
    "B": "batch_size",
    "H": "query_heads",
    "G": "kv_heads",
    "D": "head_width",
    "W": "window",
}
_LOSS = {"N": "context_length", "C": "model_width", "V": "vocab_size"}
CASE = [*_ATTENTION.values(), "model_width", "vocab_size"]
ATTENTION = "causal_attention"
_NOTHING = "-"


def print_kernels(frame: pd.DataFrame, left_out: Sequence[dict[str, Any]], path: Path, plot: str | None) -> None:
    """One screen about one run of the kernel phase."""
    out = console()
    first = frame.iloc[0]
    rows = frame[frame.phase == "kernel"]
    out.print(f"\n{first.device_name}, {first.threads} threads, {first['dtype']}", style="dim", soft_wrap=True)
    _print_tables(rows)
    for line in _reasons(left_out):
        out.print(line, style="yellow", soft_wrap=True)
    if rows.contaminated.eq(True).any():
        out.print("Other work disturbed the machine: these rows are marked contaminated.", style="yellow")
    out.print(f"\nResults: {path} ({len(frame):,} rows)", soft_wrap=True)
    if plot is not None:
        out.print(f"Plot: {plot}", soft_wrap=True)


def print_kernel_rows(rows: pd.DataFrame) -> None:
    """The same tables of rows that were stored, as many of them as were chosen."""
    _print_tables(rows)
    missing = rows[rows.metric.isin(["forward_seconds", "backward_seconds"]) & rows.value.isna()]
    for (candidate, metric), without in missing.groupby([_candidate(missing), "metric"], sort=False):
        what = str(metric).removesuffix("_seconds")
        cases = without.groupby(CASE, dropna=False).ngroups
        console().print(
            f"Not measured: {candidate}, {what} ({cases} cases): why is in {rows.run_id.iloc[0]}.json, facts.left_out.",
            style="yellow",
            soft_wrap=True,
        )


def case_name(row: Mapping[Any, Any]) -> str:
    """``sdpa T 128 B 1 …``: the candidate and its sizes, of a row of the kernel phase; "" for any other."""
    import pandas as pd

    if pd.isna(row["operation"]):
        return ""
    attention = row["operation"] == ATTENTION
    sizes = [f"{letter} {_size(row[name])}" for letter, name in (_ATTENTION if attention else _LOSS).items()]
    return " ".join([row["attention"] if attention else row["operation"], *sizes])


def _print_tables(rows: pd.DataFrame) -> None:
    known = rows[rows.value.notna()]
    attention, losses = known[known.operation == ATTENTION], known[known.operation != ATTENTION]
    if len(attention):
        _print_attention(attention)
    if len(losses):
        _print_losses(losses)


def _wide_console() -> Console:
    """For tables that a narrow terminal had better wrap than lose digits of."""
    out = console()
    out.width = max(out.width, PIPE_WIDTH)
    return out


def _candidate(rows: pd.DataFrame) -> pd.Series[str]:
    return rows.attention.where(rows.operation == ATTENTION, rows.operation)


def _print_attention(rows: pd.DataFrame) -> None:
    varying, fixed = _sizes(rows, _ATTENTION)
    numbers = ("forward", "±", "TFLOP/s", "backward", "± ", "TFLOP/s ", "memory", "error", "gradient error")
    made = table(*varying, "attention", *numbers, right=(*varying, *numbers))
    for label, _, trial in _trials(rows, varying, "attention"):
        made.add_row(
            *label,
            *_seconds(trial, "forward_seconds"),
            _teraflops(trial, "forward_flops_per_second"),
            *_seconds(trial, "backward_seconds"),
            _teraflops(trial, "backward_flops_per_second"),
            *_costs(trial),
        )
    out = _wide_console()
    out.print(f"\nCausal attention{fixed}", style="bold", soft_wrap=True)
    out.print(CONVENTION, style="dim", soft_wrap=True)
    out.print(made)


def _print_losses(rows: pd.DataFrame) -> None:
    varying, fixed = _sizes(rows, _LOSS)
    numbers = (
        "forward",
        "backward",
        "together",
        "±",
        "TFLOP/s",
        "memory",
        "error",
        "gradient error",
        "time",
        "memory ",
    )
    made = table(*varying, "loss", *numbers, right=(*varying, *numbers))
    for label, case, trial in _trials(rows, varying, "operation"):
        whole = case[case.operation == "cross_entropy"]
        against = ("", "") if len(whole) == 0 else (_ratio(trial, whole, "seconds"), _ratio(trial, whole, "bytes"))
        made.add_row(
            *label,
            _seconds(trial, "forward_seconds")[0],
            _seconds(trial, "backward_seconds")[0],
            *_spread(_together(trial)),
            _teraflops(trial, "flops_per_second"),
            *_costs(trial),
            *against,
        )
    out = _wide_console()
    out.print(f"\nLoss, and its time and memory over those of all logits at once{fixed}", style="bold", soft_wrap=True)
    out.print(made)


def _sizes(rows: pd.DataFrame, letters: dict[str, str]) -> tuple[dict[str, str], str]:
    """The sizes that differ between cases, as columns, and in words those that do not."""
    varying = {letter: name for letter, name in letters.items() if rows[name].nunique(dropna=False) > 1}
    fixed = {letter: rows[name].iloc[0] for letter, name in letters.items() if letter not in varying}
    words = [
        f"{letter} {_size(value)}" for letter, value in fixed.items() if not (letter == "W" and _size(value) == "none")
    ]
    return varying, f": {', '.join(words)}" if words else ""


def _trials(
    rows: pd.DataFrame, varying: dict[str, str], candidate: str
) -> Iterator[tuple[list[str], pd.DataFrame, pd.DataFrame]]:
    """Label cells, rows of the case and rows of the candidate, in the order measured; a case's sizes shown once."""
    sizes = list(varying.values()) or ["phase"]
    for _, case in rows.groupby(sizes, sort=False, dropna=False):
        shown = [_size(case[name].iloc[0]) for name in varying.values()]
        for name, trial in case.groupby(candidate, sort=False):
            yield [*shown, str(name)], case, trial
            shown = [""] * len(shown)


def _size(value: Any) -> str:
    import pandas as pd

    return "none" if pd.isna(value) else str(int(value))


def _values(trial: pd.DataFrame, metric: str) -> pd.Series[float]:
    return trial[trial.metric == metric].set_index("repeat").value


def _together(trial: pd.DataFrame) -> pd.Series[float]:
    """Seconds of forward and backward of each sample."""
    return (_values(trial, "forward_seconds") + _values(trial, "backward_seconds")).dropna()


def _seconds(trial: pd.DataFrame, metric: str) -> tuple[str, str]:
    return _spread(_values(trial, metric))


def _spread(seconds: pd.Series[float]) -> tuple[str, str]:
    """Median, and half the interquartile range as a share of it."""
    if seconds.empty:
        return _NOTHING, ""
    median, reach = seconds.median(), (seconds.quantile(0.75) - seconds.quantile(0.25)) / 2
    return quantity(float(median), "s"), f"{reach / median:.0%}" if len(seconds) >= 4 else ""


def _teraflops(trial: pd.DataFrame, metric: str) -> str:
    values = _values(trial, metric)
    return _NOTHING if values.empty else f"{values.iloc[0] / 1e12:.3g}"


def _costs(trial: pd.DataFrame) -> tuple[str, str, str]:
    """Memory beyond the inputs, and the errors of output and gradients."""
    errors = (_values(trial, metric) for metric in ("output_error", "gradient_error"))
    shown = (_NOTHING if values.empty else f"{values.iloc[0]:.1e}" for values in errors)
    memory = _values(trial, "peak_extra_bytes")
    return _NOTHING if memory.empty else quantity(float(memory.iloc[0]), "B"), *shown  # type: ignore[return-value]


def _ratio(trial: pd.DataFrame, whole: pd.DataFrame, what: str) -> str:
    """Median over the samples taken side by side; of memory there is one number."""
    take = _together if what == "seconds" else (lambda rows: _values(rows, "peak_extra_bytes"))
    ratio = (take(trial) / take(whole)).median()
    return _NOTHING if ratio != ratio else f"{ratio:.2f} ×"  # NaN: one of them has none


def _reasons(left_out: Sequence[dict[str, Any]]) -> list[str]:
    """What could not be measured, and why: one line a reason, with the cases where they are few."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for one in left_out:
        grouped.setdefault((one["candidate"], one["what"], one["reason"]), []).append(one["case"])
    lines = []
    for (candidate, what, reason), cases in grouped.items():
        where = f"{len(cases)} cases" if len(cases) > 2 else "; ".join(cases)
        lines.append(f"Not measured: {candidate}, {what} ({where}): {reason}.")
    return lines
