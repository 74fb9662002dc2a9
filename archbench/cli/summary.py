"""What runs print when they finish: one screen, each number with its unit and spread, and the next commands."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.presentation.characters import json_escaped
from archbench.presentation.quantities import counted
from archbench.presentation.terminal import console, paragraph, put, show
from archbench.results.doubts import doubts
from archbench.results.schema import ENDED, FAILED, UNCHECKED

if TYPE_CHECKING:
    import pandas as pd

FLOORS = {
    "floor_unigram": "unigram",
    "floor_bigram": "bigram",
    "floor_fivegram": "5-gram",
    "floor_zlib": "zlib",
    "floor_bz2": "bz2",
    "floor_xz": "xz",
}

DISTURBED = "Other work disturbed the machine: these rows are marked contaminated."
UNCHECKED_REMARK = (
    "Unchecked (--unchecked): the model may see the future or decode from a wrong cache. Its rows are marked."
)


def failures(frame: pd.DataFrame) -> list[str]:
    """One line for each run in ``frame`` that an error or a signal ended: the phase and which."""
    ended = frame[frame.metric.isin(ENDED)]
    how = {name: "failed" if name == FAILED else "was interrupted" for name in ENDED}
    return [f"Run {row.run_id} {how[str(row.metric)]} in phase {row.phase}: {row.status}" for row in ended.itertuples()]


def print_rows(frame: pd.DataFrame, out: str) -> None:
    """Print every row as a JSON object, one a line; null for unknown values."""
    text = frame.to_json(orient="records", lines=True, date_format="iso", double_precision=15)
    if not frame.empty:  # of which pandas makes an empty line
        put(json_escaped(text))


def print_summary(frame: pd.DataFrame, out: str) -> None:
    """Print one screen about one run."""
    from archbench.report.run_tables import summary_table

    screen = console()
    first = frame.iloc[0]
    screen.print(f"\n{first['architecture']} {first['preset']}", style="bold", end="")
    screen.print(
        f": {first['parameters']:,} parameters, context {first['context_length']}, {first['dtype']}, seed "
        f"{first['seed']}",
        soft_wrap=True,
    )
    where = (
        f"{first['corpus']} as {first['tokenizer']} · {first['device_name']}, {counted(first['threads'], 'thread')}\n"
    )
    screen.print(where, style="dim", soft_wrap=True)
    show(summary_table(frame))
    if scored := _scored(frame, out):
        paragraph(f"\n{scored}", style="dim")
    for text, style in _remarks(frame):
        paragraph(text, style=style)
    path = Path(out) / f"{first['run_id']}.parquet"
    screen.print(f"\nResults: {path} ({len(frame):,} rows)", soft_wrap=True)
    screen.print("Next:")
    for command in _next_commands(frame, out):
        screen.print(f"  {command}", soft_wrap=True)


def print_side_by_side(frames: Sequence[pd.DataFrame]) -> None:
    """Print a table of finished runs; nothing for fewer than two."""
    if len(frames) < 2:
        return
    from archbench.report.run_tables import side_by_side

    console().print()
    show(side_by_side(frames))


def print_kernels(frame: pd.DataFrame, left_out: Sequence[Mapping[str, Any]], path: Path, plot: str | None) -> None:
    """Print one screen about one run of the kernel phase."""
    from archbench.report.kernel_tables import kernel_tables, reasons

    screen, first = console(), frame.iloc[0]
    rows = frame[frame.phase == "kernel"]
    screen.print(
        f"\n{first.device_name}, {counted(first.threads, 'thread')}, {first['dtype']}", style="dim", soft_wrap=True
    )
    for table in kernel_tables(rows):
        screen.print()
        show(table)
    for line in reasons(left_out):
        paragraph(line, style="yellow")
    if rows.contaminated.eq(True).any():
        paragraph(DISTURBED, style="yellow")
    screen.print(f"\nResults: {path} ({len(frame):,} rows)", soft_wrap=True)
    if plot is not None:
        screen.print(f"Plot: {plot}", soft_wrap=True)


def print_serving(frame: pd.DataFrame, out: str) -> None:
    """Print one screen about one run of the phase serve."""
    from archbench.report.serving_percentiles import (
        LEFT_OUT,
        graphs_said,
        latency_table,
        throughput_table,
        weights_said,
    )

    screen, first = console(), frame.iloc[0]
    screen.print(f"\n{first.architecture} {first.preset}", style="bold", end="")
    screen.print(f": {first.parameters:,} parameters, {first['dtype']}; {weights_said(frame)}", soft_wrap=True)
    screen.print(f"{first.device_name}, {counted(first.threads, 'thread')}\n", style="dim", soft_wrap=True)
    for table in (latency_table(frame), throughput_table(frame)):
        assert table is not None
        show(table)
        screen.print()
    if (how := graphs_said(frame)) is not None:
        paragraph(how)
    if frame.contaminated.eq(True).any():
        paragraph(DISTURBED, style="yellow")
    for text, style in _remarks(frame):
        paragraph(text, style=style)
    for text in LEFT_OUT:
        paragraph(f"Not in these numbers: {text[:1].lower()}{text[1:]}", style="dim")
    path = Path(out) / f"{first.run_id}.parquet"
    screen.print(f"\nResults: {path} ({len(frame):,} rows)", soft_wrap=True)
    screen.print(f"Next:\n  archbench report {shlex.quote(str(path))}", soft_wrap=True)


def _scored(frame: pd.DataFrame, out: str) -> str | None:
    """Which part of the text was scored; None of a run without scores, or of one that does not know."""
    from archbench.runs.folder import open_run

    scored = frame[(frame.phase == "quality") & (frame.metric == "bytes_scored")]
    if scored.empty:
        return None
    row = scored.iloc[0]
    part = open_run(out, row.run_id).facts.get("scored")
    size = "" if math.isnan(row.value) else f", {row.value:,.0f} bytes"
    return None if part is None else f"Scored: {part} of {row.corpus}{size}."


def _remarks(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """What a reader has to know about the numbers, with the style of the line."""
    from archbench.report.run_tables import checks

    quality = frame[frame.phase == "quality"].set_index("metric").value
    if floors := [f"{name} {quality[metric]:.3f}" for metric, name in FLOORS.items() if metric in quality]:
        yield f"\nBits per byte of the same text by counting and compressing: {', '.join(floors)}.", "dim"
    yield from ((doubt, "red") for doubt in doubts(frame))
    diverged = frame[frame.metric == "diverged"]
    if len(diverged):
        step = diverged.value.iloc[0]
        yield f"Training diverged: the loss was no longer finite at step {step:.0f}, where the run ended.", "yellow"
    if (frame.conformance == UNCHECKED).any():
        yield UNCHECKED_REMARK, "yellow"
    else:
        yield f"Conformance checks passed: {checks(frame)}.", "dim"
    if "bits_per_byte" in quality and math.isnan(quality["bits_per_byte"]):
        yield (
            f"Bits per byte are not known: {frame.tokenizer.iloc[0]} does not say which bytes a token stands for.",
            "yellow",
        )
    if frame.lossless.eq(False).any():
        yield "The tokenizer loses some of this text's bytes, so its bits per byte are too low.", "yellow"


def _next_commands(frame: pd.DataFrame, out: str) -> list[str]:
    first = frame.iloc[0]
    where = "" if out == "results" else f" --out {shlex.quote(out)}"
    path = Path(out) / f"{first.run_id}.parquet"
    return [
        f'archbench generate {first.architecture} --run {first.run_id}{where} --prompt "ROMEO:"',
        f"archbench results {shlex.quote(str(path))}",
        f"archbench run {first.architecture} --seed 1 --seed 2{where}   # is the difference more than chance?",
    ]
