"""``archbench results``: the tidy table, for people and for programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.options import Json
from archbench.errors import StorageError
from archbench.results.schema import FAILED, UNCHECKED

if TYPE_CHECKING:
    import pandas as pd

SHOWN_RUNS = 3
"""Newest runs shown to a person who does not say how many."""

_INCIDENTAL = ("check", "environment")
"""Phases that measure nothing of the model."""

_CHANGING = ("loss", "learning_rate", "grad_norm", "validation_loss", "validation_bits_per_byte")
"""Training metrics that change with the step: their last value tells more than their median."""


def results(
    path: Annotated[str, typer.Argument(help="A results folder, one .parquet file, or a glob pattern.")] = "results",
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only these rows: phase=decode, batch_size=1 ... (repeatable)."),
    ] = None,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write every column and row as CSV; - is standard output.")
    ] = None,
    json: Json = False,
    raw: Annotated[bool, typer.Option("--raw", help="Every row, instead of medians over repeats.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="At most this many newest runs; 0 for all.",
            show_default=f"{SHOWN_RUNS}, all with --csv or --json",
        ),
    ] = None,
) -> None:
    """Show results, the newest run first: median, interquartile range and number of repeats of each measurement.

    Loss, learning rate and the like, which change as training goes on, are shown by their last value. Rows of the
    phases "check" and "environment" are shown only when asked for (--where phase=check), or with --raw, --csv and
    --json. Of a run that an error ended there is a line with the error, below what was measured before.
    """
    from archbench.cli.summary import print_rows
    from archbench.results.reading import read_results

    frame = read_results(path, where or None)
    total = frame.run_id.nunique()
    shown = (total if csv or json else SHOWN_RUNS) if limit is None else limit or total
    frame = frame[frame.run_id.isin(frame.run_id.drop_duplicates().head(shown))]
    if csv is not None:
        _write_csv(frame, csv)
    if json:
        print_rows(frame, path)
    if csv is None and not json:
        if frame.empty:
            typer.echo(
                f"No {'matching ' if where else ''}results in {path}."
                + ("" if where else " Start with: archbench run gpt1")
            )
            return
        (_print_raw if raw else _print_summary)(frame, hide_incidental=not any("phase" in text for text in where or []))
        if total > shown:
            typer.echo(f"\n{total - shown} older runs not shown; --limit 0 shows all.")


def _print_summary(frame: pd.DataFrame, *, hide_incidental: bool) -> None:
    from archbench.cli.kernels_table import print_kernel_rows
    from archbench.cli.output import console, table
    from archbench.cli.summary import UNCHECKED_REMARK, failures

    out = console()
    for number, (run_id, rows) in enumerate(frame.groupby("run_id", sort=False)):
        if number:
            out.print()
        title = _title({**rows.iloc[0].to_dict(), "parameters": rows.parameters.max()})
        out.print(f"{run_id}  {title}", style="bold", soft_wrap=True)
        contaminated, unchecked, failed = rows.contaminated, rows.conformance == UNCHECKED, failures(rows)
        rows = rows[rows.metric != FAILED]
        if hide_incidental:
            rows = rows[~rows.phase.isin(_INCIDENTAL)]
        if (rows.phase == "kernel").any():
            print_kernel_rows(rows[rows.phase == "kernel"])
            rows = rows[rows.phase != "kernel"]
        made = table("phase", "metric", "batch × prompt", "value", "half of them within", "n", right=("value", "n"))
        phase = None
        for line in summarise(rows):
            made.add_row("" if line["phase"] == phase else line["phase"], *_cells(line))
            phase = line["phase"]
        if made.row_count:
            out.print(made)
        for failure in failed:
            out.print(failure, style="red", soft_wrap=True)
        if unchecked.any():
            out.print(UNCHECKED_REMARK, style="yellow", soft_wrap=True)
        if contaminated.fillna(False).any():
            out.print(
                "Other work ran on this machine during some phases: their speeds are marked contaminated.",
                style="yellow",
            )


def summarise(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One dictionary a measurement of one run: median, quartiles and number of its repeats, in the order measured.

    Values are in the row's unit. ``median`` is the last value for metrics that change with the step; null values are
    left out of all four, and a measurement that has only those has a null ``median`` and n = 0.
    """
    lines = []
    keys = ["phase", "metric", "unit", "batch_size", "prompt_length"]
    for (phase, metric, unit, B, P), group in rows.groupby(keys, sort=False, dropna=False):
        values = group.value.dropna()
        changing = phase == "train" and metric in _CHANGING
        lines.append(
            {
                "phase": phase,
                "metric": metric,
                "unit": unit,
                "batch_size": _integer(B),
                "prompt_length": _integer(P),
                "median": None if values.empty else float(values.iloc[-1] if changing else values.median()),
                "lower": None if changing or len(values) < 2 else float(values.quantile(0.25)),
                "upper": None if changing or len(values) < 2 else float(values.quantile(0.75)),
                "n": len(values),
                "last": changing and len(values) > 1,
            }
        )
    return lines


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    from archbench.presentation.quantities import quantity

    B, P, unit = line["batch_size"], line["prompt_length"], line["unit"]
    case = "" if P is None else f"{B} × {P}"
    spread = "the last one" if line["last"] else ""
    if line["lower"] is not None:
        spread = f"{quantity(line['lower'], unit)} – {quantity(line['upper'], unit)}"
    return line["metric"], case, quantity(line["median"], unit), spread, str(line["n"])


def _print_raw(frame: pd.DataFrame, *, hide_incidental: bool) -> None:
    from archbench.cli.kernels_table import case_name
    from archbench.cli.output import console, table
    from archbench.cli.summary import failures
    from archbench.presentation.quantities import quantity

    numbers = ("seed", "batch", "prompt", "repeat", "value")
    cases = ("case",) if frame.operation.notna().any() else ()
    names = ("run", "architecture", "preset", "seed", "phase", "metric")
    made = table(*names, *cases, "batch", "prompt", "repeat", "value", right=numbers)
    for row in frame.to_dict("records"):
        B, P = _integer(row["batch_size"]), _integer(row["prompt_length"])
        case = ("" if B is None else str(B), "" if P is None else str(P))
        named = [str(row[name]) for name in ("run_id", *names[1:])]
        made.add_row(
            *named, *([case_name(row)] if cases else []), *case, str(row["repeat"]), quantity(row["value"], row["unit"])
        )
    out = console()
    out.print(made)
    for line in failures(frame):
        out.print(line, style="red", soft_wrap=True)


def _title(row: Mapping[Any, Any]) -> str:
    when = f"{row['time_utc']:%Y-%m-%d %H:%M} UTC"
    if row["architecture"] == "none":
        return f"kernels · {row['device_name']}, {row['dtype']} · seed {row['seed']} · {when}"
    size = _integer(row["parameters"])
    parameters = "" if size is None else f", {size:,} parameters"
    text = "" if row["corpus"] is None else f" · {row['corpus']}, {row['tokenizer']}"
    return (
        f"{row['architecture']} {row['preset']}{parameters}{text} · {row['device_name']}, {row['dtype']}"
        f" · seed {row['seed']} · {when}"
    )


def _integer(value: Any) -> int | None:
    import pandas as pd

    return None if pd.isna(value) else int(value)


def _write_csv(frame: pd.DataFrame, target: str) -> None:
    """All columns; written beside the target first, so that a full disk leaves no half a table."""
    if target == "-":
        print(frame.to_csv(index=False), end="")
        return
    file = Path(target)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        frame.to_csv(temporary, index=False)
        temporary.replace(file)
    except OSError as error:
        raise StorageError(
            f"--csv {target}", f"it cannot be written ({error.strerror or error})", "Choose another file"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    typer.echo(f"{len(frame):,} rows written to {target}", err=True)
