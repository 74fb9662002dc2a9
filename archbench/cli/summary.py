"""What a run prints when it is done: one screen, each number with its unit and spread, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from archbench.presentation.quantities import quantity
from archbench.results.schema import FAILED, UNCHECKED

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


UNCHECKED_REMARK = (
    "Unchecked: whether the model sees the future or decodes from a wrong cache was not looked at (--unchecked); "
    "its rows say so."
)


def failures(frame: pd.DataFrame) -> list[str]:
    """One line for each run in ``frame`` that an error ended: in which phase, and the error."""
    failed = frame[frame.metric == FAILED]
    return [f"Run {row.run_id} failed in phase {row.phase}: {row.status}" for row in failed.itertuples()]


def print_rows(frame: pd.DataFrame, out: str) -> None:
    """Every row as one JSON object a line, on standard output; null where a value is not known."""
    for line in frame.to_json(orient="records", lines=True, date_format="iso", double_precision=15).splitlines():
        print(line)


def print_summary(frame: pd.DataFrame, out: str) -> None:
    """One screen about one run."""
    console = Console(highlight=False)
    first = frame.iloc[0]
    console.print(
        f"\n[bold]{first['architecture']} {first['preset']}[/bold]: {first['parameters']:,} parameters, "
        f"context {first['context_length']}, {first['dtype']}, seed {first['seed']}\n"
        f"[dim]{first['corpus']} as {first['tokenizer']} · {first['device_name']}, {first['threads']} threads[/dim]\n"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("measured", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("middle half", style="dim", no_wrap=True)
    table.add_column("", style="dim")
    for phase, add in (("quality", _quality), ("train", _training), ("prefill", _prefill), ("decode", _decode)):
        rows = frame[frame.phase == phase]
        if len(rows):
            add(_Section(table, phase, rows))
    console.print(table)
    for line in _remarks(frame):
        console.print(line)
    path = Path(out) / f"{first['run_id']}.parquet"
    console.print(f"\nResults: {path} ({len(frame):,} rows)", soft_wrap=True)
    console.print("Next:")
    for command in _next_commands(frame, out):
        console.print(f"  {command}", soft_wrap=True, markup=False)


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
        """The median of a metric's rows, with the middle half where there are several; nothing if there are none."""
        values = self.values(metric)
        if len(values):
            self.line(name, quantity(float(values.median()), unit), _spread(values, unit), note)

    def memory(self) -> None:
        peak, baseline = self.value("peak_memory_bytes"), self.value("baseline_memory_bytes")
        if peak is not None:
            note = "" if baseline is None else f"{quantity(peak - baseline, 'B')} new"
            self.line("peak memory", quantity(peak, "B"), note=note)

    def cases(self, name: str, metric: str) -> None:
        """A line for each batch size B and prompt length P, with tokens/s beside it."""
        for (B, P), rows in self.rows.dropna(subset=["prompt_length"]).groupby(["batch_size", "prompt_length"]):
            case = _Section(self.table, self.title, rows)
            case.measured(name.format(B=B, P=P), metric, "s", note=quantity(case.value("tokens_per_second"), "token/s"))
            self.title = ""


def _spread(values: pd.Series[float], unit: str) -> str:
    if len(values) < 4:
        return ""
    low, high = (quantity(float(values.quantile(share)), unit) for share in (0.25, 0.75))
    number, _, scale = low.partition(" ")
    return f"{number if high.endswith(' ' + scale) else low} – {high}"


def _quality(section: _Section) -> None:
    section.measured("bits per byte", "bits_per_byte", "bit/byte")
    section.measured("perplexity", "perplexity", "1", note="per token")
    section.measured("loss", "loss", "nats/token")


def _training(section: _Section) -> None:
    section.measured("step", "step_seconds", "s", note=f"{section.value('steps'):,.0f} steps")
    section.measured("first step", "first_step_seconds", "s", note="kept apart")
    section.measured("throughput", "tokens_per_second", "token/s")
    mfu = section.value("mfu")
    note = f"MFU {mfu:.0%}" if mfu is not None else ""
    section.measured("model FLOP/s", "model_flops_per_second", "FLOP/s", note=note)
    section.memory()


def _prefill(section: _Section) -> None:
    section.cases("{P:.0f}-token prompt × {B:.0f}", "seconds_to_first_token")
    section.memory()


def _decode(section: _Section) -> None:
    section.cases("token after {P:.0f} × {B:.0f}", "seconds_per_token")
    section.measured("cache", "cache_bytes_per_token", "B/token")
    section.memory()


def _remarks(frame: pd.DataFrame) -> list[str]:
    lines = []
    quality = frame[frame.phase == "quality"].set_index("metric").value
    floors = [f"{name} {quality[metric]:.3f}" for metric, name in FLOORS.items() if metric in quality]
    if floors:
        lines.append(f"\n[dim]Bits per byte of the same text by counting and compressing: {', '.join(floors)}.[/dim]")
    diverged = frame[frame.metric == "diverged"]
    if len(diverged):
        step = diverged.value.iloc[0]
        lines.append(f"[yellow]Training diverged: no finite loss at step {step:.0f}, where the run ended.[/yellow]")
    if (frame.conformance == UNCHECKED).any():
        lines.append(f"[yellow]{UNCHECKED_REMARK}[/yellow]")
    contaminated = frame[frame.contaminated.eq(True)].phase.unique()
    if len(contaminated):
        phases = ", ".join(phase for phase in contaminated if phase != "environment")
        lines.append(
            f"[yellow]Other work disturbed the machine in {phases}: those rows are marked contaminated.[/yellow]"
        )
    if frame.lossless.eq(False).any():
        lines.append(
            "[yellow]The tokenizer loses some of this text's bytes: its bits per byte are too good to be true.[/yellow]"
        )
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
