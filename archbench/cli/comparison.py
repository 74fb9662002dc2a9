"""What several runs print last: one line each, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from archbench.presentation.quantities import quantity

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    ("bits/\nbyte", "quality", "bits_per_byte", "bit/byte"),
    ("training\ntokens/s", "train", "tokens_per_second", "token/s"),
    ("peak\nmemory", "train", "peak_memory_bytes", "B"),
    ("first\ntoken", "prefill", "seconds_to_first_token", "s"),
    ("next\ntoken", "decode", "seconds_per_token", "s"),
    ("state", "decode", "cache_bytes", "B"),
)
"""Title, phase, metric and unit; of prefill and decode the longest prompt of the smallest batch."""


def print_comparison(frames: Sequence[pd.DataFrame]) -> None:
    """A table of finished runs, in the order in which they were measured; nothing for fewer than two."""
    if len(frames) < 2:
        return
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for title in ("parameters", *(title for title, *_ in COLUMNS)):
        table.add_column(title, justify="right", no_wrap=True)
    seeds = {int(frame.seed.iloc[0]) for frame in frames}
    several_presets = len({frame.preset.iloc[0] for frame in frames}) > 1
    for frame in frames:
        first = frame.iloc[0]
        name = first.architecture + (f" {first.preset}" if several_presets else "")
        name += f" seed {first.seed}" if len(seeds) > 1 else ""
        cells = [_cell(frame, phase, metric, unit) for _, phase, metric, unit in COLUMNS]
        table.add_row(name, f"{first.parameters:,}", *cells)
    console.print()
    console.print(table)
    console.print(f"\n[dim]{_remark(frames, seeds)}[/dim]")


def _cell(frame: pd.DataFrame, phase: str, metric: str, unit: str) -> str:
    rows = frame[(frame.phase == phase) & (frame.metric == metric)].dropna(subset=["value"])
    if "prompt_length" in rows and rows.prompt_length.notna().any():
        rows = rows[rows.batch_size == rows.batch_size.min()]
        rows = rows[rows.prompt_length == rows.prompt_length.max()]
    if rows.empty:
        return "–"
    # Where there is no prefix to choose, the unit stands in the title alone.
    return quantity(float(rows.value.median()), unit).removesuffix(" bit/byte").removesuffix(" tokens/s")


def _remark(frames: Sequence[pd.DataFrame], seeds: set[int]) -> str:
    decoded = frames[0][frames[0].phase == "decode"].dropna(subset=["prompt_length"])
    case = ""
    if len(decoded):
        B, P = int(decoded.batch_size.min()), int(decoded.prompt_length.max())
        case = f" First and next token, and the state that decoding keeps: after {P} tokens × {B}."
    chance = (
        " One seed: a difference in bits/byte may be chance (--seed 1 --seed 2 measures more)."
        if len(seeds) == 1
        else ""
    )
    return f"Peak memory: of training.{case}{chance}"
