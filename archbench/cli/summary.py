"""What a run prints when it is done: one screen, each number with its unit and spread, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from archbench.cli.units import humanise

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


def print_rows(frame: pd.DataFrame, out: str) -> None:
    """Every row as one JSON object a line, on standard output; null where a value is not known."""
    for line in frame.to_json(orient="records", lines=True, date_format="iso", double_precision=15).splitlines():
        print(line)


def print_summary(frame: pd.DataFrame, out: str) -> None:
    """One screen about one run."""
    console = Console()
    first = frame.iloc[0]
    console.print()
    console.print(
        f"[bold]{first.architecture}[/bold] {first.preset}, {first.parameters:,} parameters, context {first.context_length}"
        f" · {first.corpus}, {first.tokenizer} · {first.device_name}, {first.threads} threads, {first.dtype}"
        f" · seed {first.seed}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
    table.add_column("")
    table.add_column("measured")
    table.add_column("value", justify="right")
    table.add_column("half of the samples within", style="dim")
    table.add_column("", style="dim")
    for phase, add in (("quality", _quality), ("train", _training), ("prefill", _prefill), ("decode", _decode)):
        rows = frame[frame.phase == phase]
        if len(rows):
            add(_Section(table, phase, rows))
    console.print(table)
    for line in _warnings(frame):
        console.print(f"[yellow]{line}[/yellow]", highlight=False)
    path = Path(out) / f"{first.run_id}.parquet"
    console.print(f"\nResults: {path} ({len(frame):,} rows)", highlight=False, soft_wrap=True)
    console.print("Next:", highlight=False)
    for command in _next_commands(frame, out):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


class _Section:
    """One phase's lines of the table."""

    def __init__(self, table: Table, title: str, rows: pd.DataFrame) -> None:
        self.table = table
        self.title = title
        self.rows = rows

    def values(self, metric: str) -> pd.Series[float]:
        return self.rows[self.rows.metric == metric].value.dropna()

    def value(self, metric: str) -> float | None:
        values = self.values(metric)
        return float(values.iloc[-1]) if len(values) else None

    def line(self, name: str, value: str, spread: str = "", note: str = "") -> None:
        self.table.add_row(self.title, name, value, spread, note)
        self.title = ""

    def measured(self, name: str, metric: str, unit: str, note: str = "") -> None:
        """The median of a metric's rows, with the interquartile range where there are several; nothing if there are none."""
        values = self.values(metric)
        if len(values):
            self.line(name, humanise(values.median(), unit), _spread(values, unit), note)

    def memory(self) -> None:
        peak, baseline = self.value("peak_memory_bytes"), self.value("baseline_memory_bytes")
        if peak is not None:
            note = "" if baseline is None else f"{humanise(baseline, 'B')} before the phase began"
            self.line("peak memory", humanise(peak, "B"), note=note)


def _spread(values: pd.Series[float], unit: str) -> str:
    if len(values) < 4:
        return ""
    return f"{humanise(values.quantile(0.25), unit)} – {humanise(values.quantile(0.75), unit)}"


def _quality(section: _Section) -> None:
    floors = ", ".join(
        f"{name} {value:.3f}" for metric, name in FLOORS.items() if (value := section.value(metric)) is not None
    )
    section.measured("bits per byte", "bits_per_byte", "bit/byte", note="held-out text, each token scored once")
    section.line("  floors", "", note=floors)
    tokenizer = section.rows.tokenizer.iloc[0]
    section.measured("perplexity", "perplexity", "1", note=f"per token of {tokenizer}")
    section.measured("loss", "loss", "nats/token")


def _training(section: _Section) -> None:
    steps, tokens = section.value("steps"), section.rows.tokens_seen.max()
    section.measured("step", "step_seconds", "s", note=f"{steps:,.0f} steps, {tokens:,.0f} tokens")
    section.measured("first step", "first_step_seconds", "s", note="with warm-up and compilation, kept apart")
    section.measured("throughput", "tokens_per_second", "token/s")
    mfu, published = section.value("mfu"), section.value("peak_flops_published")
    against = "published" if published is not None else "measured"
    note = f"{mfu:.0%} of the {against} peak (MFU)" if mfu is not None else ""
    section.measured("model FLOP/s", "model_flops_per_second", "FLOP/s", note=note)
    section.memory()


def _prefill(section: _Section) -> None:
    for (B, P), rows in section.rows.dropna(subset=["prompt_length"]).groupby(["batch_size", "prompt_length"]):
        case = _Section(section.table, section.title, rows)
        speed = case.value("tokens_per_second")
        note = f"{humanise(speed, 'token/s')}" if speed is not None else ""
        case.measured(f"first token, {P:.0f}-token prompt × {B:.0f}", "seconds_to_first_token", "s", note=note)
        section.title = case.title
    section.memory()


def _decode(section: _Section) -> None:
    for (B, P), rows in section.rows.dropna(subset=["prompt_length"]).groupby(["batch_size", "prompt_length"]):
        case = _Section(section.table, section.title, rows)
        speed = case.value("tokens_per_second")
        note = f"{humanise(speed, 'token/s')}" if speed is not None else ""
        case.measured(f"per token after {P:.0f} × {B:.0f}", "seconds_per_token", "s", note=note)
        section.title = case.title
    section.measured("cache", "cache_bytes_per_token", "B/token")
    section.memory()


def _warnings(frame: pd.DataFrame) -> list[str]:
    lines = []
    diverged = frame[frame.metric == "diverged"]
    if len(diverged):
        lines.append(f"Training diverged: the loss was no longer finite at step {diverged.value.iloc[0]:.0f}.")
    if frame.contaminated.fillna(False).any():
        phases = ", ".join(sorted(set(frame[frame.contaminated.fillna(False)].phase) - {"environment"}))
        lines.append(f"Other work ran on this machine meanwhile ({phases}): the speeds are marked contaminated.")
    if not frame.lossless.fillna(True).all():
        lines.append("The tokenizer is not lossless on this text: bits per byte describe the tokenised text only.")
    return lines


def _next_commands(frame: pd.DataFrame, out: str) -> list[str]:
    first = frame.iloc[0]
    where = "" if out == "results" else f" --out {shlex.quote(out)}"
    path = Path(out) / f"{first.run_id}.parquet"
    return [
        f'archbench generate {first.architecture} --run {first.run_id}{where} --prompt "ROMEO:"',
        f"archbench results {shlex.quote(str(path))}",
        f"archbench run {first.architecture} --seed 1 --seed 2{where}   # is the difference more than chance?",
    ]

