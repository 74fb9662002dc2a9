"""``archbench results``: the tidy table, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.options import Force, Json
from archbench.errors import UsageError
from archbench.presentation.characters import harmless
from archbench.presentation.terminal import echo, paragraph, put, show
from archbench.results.schema import COLUMNS, ENDED, UNCHECKED

if TYPE_CHECKING:
    import pandas as pd

SHOWN_RUNS = 3
"""Newest runs shown by default."""

_INCIDENTAL = ("check", "environment")
"""Phases that do not measure the model; nor do the rows of an audit."""


def results(
    path: Annotated[str, typer.Argument(help="A results folder, one .parquet file, or a glob pattern")] = "results",
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only these rows: phase=decode, batch_size=1 … (repeatable)"),
    ] = None,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write every column and row as CSV; - for standard output")
    ] = None,
    json: Json = False,
    trials: Annotated[
        bool,
        typer.Option("--trials", help="Also the runs by which studies choose learning rates and predict times"),
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Every row, instead of medians over repeats")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Show nothing: compare all files with their checksums, as archbench fsck")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="With --verify: the checkpoints too, the largest files")] = False,
    force: Force = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of newest runs; 0 for all",
            show_default=f"{SHOWN_RUNS}, all with --csv or --json",
        ),
    ] = None,
) -> None:
    """Show results, the newest run first: median, IQR and number of repeats of each measurement.

    Metrics that change during training, such as the loss, have their last value. The phases "check" and "environment"
    and the rows of audits appear only on request (--where phase=check), or with --raw, --csv and --json. A failed run
    has a line with the error, below what it measured before. A study's trials of learning rates and its pilots appear
    with --trials, or if a role is asked for (--where role=trial).
    """
    if deep and not verify:
        raise UsageError("--deep", "it needs --verify: nothing is compared otherwise", "Add --verify")
    if verify:
        from archbench.cli.fsck import print_findings
        from archbench.runs.integrity import examine

        print_findings(list(examine(Path(path), deep=deep)), path, json=json)
        return
    from archbench.results.newest import NewestRuns

    programs = csv is not None or json
    runs = NewestRuns(path, where or None, trials=trials)
    shown = (None if programs else SHOWN_RUNS) if limit is None else limit or None
    frames = islice(runs, shown)
    texts: list[str] = []
    if programs:
        texts = [_for_programs(frame, path, json=json, csv=csv is not None) for frame in frames]
    elif raw:
        found = _print_raw(list(frames))
    else:
        found = _print_summaries(frames, path, hide_incidental=not any("phase" in text for text in where or []))
    left = runs.count()
    if runs.hidden:
        # Programs read standard output.
        echo(f"{runs.hidden} trials and pilots of studies are left out; --trials has them too.", error=True)
    if csv is not None:
        _write_csv(texts, csv, force=force)
    if programs:
        return
    if not found:
        start = "" if where or runs.hidden else " Start with: archbench run gpt1"
        echo(f"No {'matching ' if where else ''}results in {path}.{start}")
    elif left:
        echo(f"\n{left} older runs not shown; --limit 0 shows all.")


def _for_programs(frame: pd.DataFrame, path: str, *, json: bool, csv: bool) -> str:
    """Print the rows of a run as JSON; the lines of it as CSV, "" if they are not wanted."""
    from archbench.cli.summary import print_rows

    if json:
        print_rows(frame, path)
    return _as_csv(frame) if csv else ""


def _print_summaries(frames: Iterator[pd.DataFrame], path: str, *, hide_incidental: bool) -> int:
    """Print one run after the other, and whether they are of one machine; returns how many."""
    import pandas as pd

    from archbench.report.basis import MACHINE, several_machines

    machines = []
    for number, frame in enumerate(frames):
        if number:
            echo()
        _print_summary(frame, path, hide_incidental=hide_incidental)
        machines.append(frame[MACHINE].drop_duplicates())
    if machines and (mixed := several_machines(pd.concat(machines))) is not None:
        echo()
        paragraph(mixed, style="yellow")
    return len(machines)


def _print_summary(rows: pd.DataFrame, path: str, *, hide_incidental: bool) -> None:
    from archbench.cli.summary import UNCHECKED_REMARK, failures
    from archbench.report.kernel_tables import kernel_tables, not_measured
    from archbench.report.run_tables import checks, integer, measurement_table
    from archbench.results.doubts import doubts

    run_id = rows.run_id.iloc[0]
    title = _title({**rows.iloc[0].to_dict(), "parameters": integer(rows.parameters.max())})
    paragraph(f"{run_id}  {title} · checks: {checks(rows)}", style="bold")
    contaminated, unchecked, failed = rows.contaminated, rows.conformance == UNCHECKED, failures(rows)
    doubtful = doubts(rows)
    rows = rows[~rows.metric.isin(ENDED)]
    if hide_incidental:
        rows = rows[~rows.phase.isin(_INCIDENTAL) & ~rows.metric.str.startswith("audit_")]
    kernels, rows = rows[rows.phase == "kernel"], rows[rows.phase != "kernel"]
    for table in [*kernel_tables(kernels), *([measurement_table(rows)] if len(rows) else [])]:
        show(table)
    for line in not_measured(kernels, [path]):
        paragraph(line, style="yellow")
    for line in (*failed, *doubtful):
        paragraph(line, style="red")
    if unchecked.any():
        paragraph(UNCHECKED_REMARK, style="yellow")
    if contaminated.fillna(False).any():
        paragraph("Other work ran on this machine: speeds so marked are contaminated.", style="yellow")


def _print_raw(frames: list[pd.DataFrame]) -> int:
    """Print every row in one table; returns the number of runs."""
    import pandas as pd

    from archbench.cli.summary import failures
    from archbench.report.run_tables import raw_table

    if not frames:
        return 0
    frame = pd.concat(frames)
    show(raw_table(frame))
    for line in failures(frame):
        paragraph(line, style="red")
    return len(frames)


def _title(row: Mapping[Any, Any]) -> str:
    when = f"{row['time_utc']:%Y-%m-%d %H:%M} UTC"
    if row["architecture"] == "none":
        return f"kernels · {row['device_name']}, {row['dtype']} · seed {row['seed']} · {when}"
    if isinstance(row["role"], str):
        when += f" · {row['role']}"
    parameters = "" if row["parameters"] is None else f", {row['parameters']:,} parameters"
    text = f" · {row['corpus']}, {row['tokenizer']}" if isinstance(row["corpus"], str) else ""
    return (
        f"{row['architecture']} {row['preset']}{parameters}{text} · {row['device_name']}, {row['dtype']}"
        f" · seed {row['seed']} · {when}"
    )


def _as_csv(frame: pd.DataFrame) -> str:
    """All columns, without their names; no text of it is a formula."""
    shown = frame.copy(deep=False)
    for name in frame.select_dtypes(["object", "string"]):
        shown[name] = frame[name].map(harmless, na_action="ignore")
    text: str = shown.to_csv(index=False, header=False)
    return text


def _write_csv(runs: list[str], target: str, *, force: bool) -> None:
    """Write the lines of all runs below the names of the columns, or no file at all."""
    text = "".join([",".join(column.name for column in COLUMNS) + "\n", *runs])
    if target == "-":
        put(text)
        return
    from archbench.files.outputs import Output, write_output

    write_output(Output(Path(target), "table of results", "--csv"), text.encode(), force=force, new_folder=False)
    echo(f"{text.count(chr(10)) - 1:,} rows written to {target}", error=True)
