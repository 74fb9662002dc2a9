"""Serving: percentiles of latencies, throughput, and the figure of their distributions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from archbench.presentation.quantities import count, quantity
from archbench.presentation.tables import Column, Table, table
from archbench.report.figures import Axis, Figure, Panel, Scale, Series, ticks_of
from archbench.report.styles import LIGHT, MARKERS, Style

if TYPE_CHECKING:
    import pandas as pd

    from archbench.report.evidence import Evidence

LATENCIES = (
    ("seconds_to_first_token", "first token", "TTFT"),
    ("seconds_per_output_token", "output token", "TPOT"),
    ("seconds_between_tokens", "between tokens", "ITL"),
    ("latency_seconds", "whole answer", "E2EL"),
    ("queue_seconds", "in the queue", ""),
)
"""Metric, name, and the name in vLLM's benchmark."""

PERCENTILES = (50, 90, 99)
"""Shown beside the mean; between two samples they are interpolated linearly, as ``numpy.percentile`` does."""

LEFT_OUT = (
    "A server's scheduler: batches are static and of equal prompt lengths. With continuous batching, chunked prefill "
    "and paged caches, queues are shorter and batches larger.",
    "The network, tokenisation and detokenisation: time begins when a request arrives and ends with its token's id.",
)
"""What serving does not show, a sentence each."""

_Case = tuple[str, "pd.DataFrame"]


def cases_of(rows: pd.DataFrame) -> Iterator[_Case]:
    """Each case of the phase serve, in words, and its rows: batch and prompt, or the batches of a trace."""
    import pandas as pd

    own = rows[rows.phase == "serve"]
    passes = own[own.metric == "requests_per_second"]
    for _, case in passes.groupby(["batch_size", "prompt_length"], sort=False, dropna=False):
        B, P = case.batch_size.iloc[0], case.prompt_length.iloc[0]
        one = own[own.batch_size == B]
        yield (f"trace, up to {B}", one) if pd.isna(P) else (f"{B} × {P}", one[one.prompt_length == P])


def latency_table(rows: pd.DataFrame) -> Table | None:
    """Mean and percentiles of each latency and case; None if nothing was served."""
    columns = (
        Column("batch × prompt", "name"), Column("seconds", "name"), Column("mean", unit="s"),
        *(Column(f"p{share}", unit="s") for share in PERCENTILES), Column("n", show=count, priority=1),
    )  # fmt: skip
    lines = []
    for case, own in cases_of(rows):
        for metric, name, short in LATENCIES:
            values = own.value[own.metric == metric].dropna().to_numpy()
            if len(values) and (metric != "queue_seconds" or values.any()):
                found = (float(np.percentile(values, share)) for share in PERCENTILES)
                label = f"{name} ({short})" if short else name
                lines.append((case, label, float(values.mean()), *found, len(values)))
    if not lines:
        return None
    caption = (
        "Of every request of every pass, from its arrival; gaps between tokens of all requests together. Requests of "
        "one batch share its times, so they are not independent samples."
    )
    return table("serving", "Latency", columns, lines, caption=caption, grouped=1)


def throughput_table(rows: pd.DataFrame) -> Table | None:
    """Medians over the passes of each case; None if nothing was served."""
    columns = (
        Column("batch × prompt", "name"), Column("requests/s"), Column("output tokens/s"), Column("all tokens/s"),
        Column("in a batch", hint="mean requests in the batch of a request"), Column("passes", priority=1),
    )  # fmt: skip
    lines = []
    for case, own in cases_of(rows):
        values = {str(metric): one.value for metric, one in own.groupby("metric")}
        names = ("requests_per_second", "output_tokens_per_second", "tokens_per_second")
        speeds = (float(values[name].median()) for name in names)
        lines.append((case, *speeds, float(values["batch_requests"].mean()), len(values[names[0]])))
    return table("throughput", "Throughput", columns, lines) if lines else None


def weights_said(rows: pd.DataFrame) -> str:
    """Whether the weights that were served had been trained."""
    trained = rows.value[(rows.phase == "serve") & (rows.metric == "trained")]
    return "random weights of a preset" if (trained == 0).any() else "trained weights"


def graphs_said(rows: pd.DataFrame) -> str | None:
    """Whether tokens were replays of captured steps, and why they were not; None if nobody asked for them."""
    captured = rows[(rows.phase == "serve") & (rows.metric == "graph_captured")]
    if captured.empty:
        return None
    reasons = sorted({str(reason) for reason in captured.operation[captured.value == 0]})
    if reasons:
        return f"Tokens are decoded one operation at a time: {'; '.join(reasons)}."
    return "Each token after the first is one replay of a captured step."


def served_in_words(rows: pd.DataFrame) -> Iterator[str]:
    """The weights of the phase serve, and a sentence for each of its cases."""
    if (rows.phase == "serve").any():
        yield f"Served with {weights_said(rows)}."
        yield from filter(None, [graphs_said(rows)])
    for case, own in cases_of(rows):
        first, gap = (own.value[own.metric == name].dropna() for name, *_ in (LATENCIES[0], LATENCIES[2]))
        said = f"{case}: 99 % of the requests have their first token within "
        said += quantity(float(np.percentile(first, 99)), "s")
        if len(gap):
            said += f", and 99 % of the gaps between tokens are at most {quantity(float(np.percentile(gap, 99)), 's')}"
        yield f"{said}."


def serving_figure(evidence: Evidence) -> Figure | None:
    """The distribution of each latency, a line for each case; None for several runs, or if nothing was served."""
    rows = evidence.rows
    cases = dict(cases_of(rows)) if rows.run_id.nunique() == 1 else {}
    styles = {case: Style(n % len(LIGHT), n % len(MARKERS), dashed=n >= len(LIGHT)) for n, case in enumerate(cases)}
    panels = []
    shares = tuple(range(101))
    for metric, name, _ in LATENCIES:
        series = []
        for case, own in cases.items():
            values = own.value[own.metric == metric].dropna()
            if len(values) and (metric != "queue_seconds" or values.any()):
                found = tuple(float(one) for one in np.percentile(values, shares))
                series.append(Series(case, styles[case], found, tuple(one / 100 for one in shares), drawn="curve"))
        if series:
            every = [value for one in series for value in one.x]
            scale: Scale = "log" if max(every) > 4 * min(every) > 0 else "linear"
            across = Axis(name, "s", scale, ticks_of(every, "s", scale))
            panels.append(Panel(name, across, Axis("share of samples", zero=True), tuple(series)))
    if not panels:
        return None
    return Figure(
        "latencies", "Latency of requests, by share",
        "A line at (x, y): the share y of the samples took at most x. Steep is steady; a long tail to the right is "
        "what p99 tells.",
        tuple(panels), arrangement="switch", provenance=(("rows", "phase serve: every request and every gap"),),
    )  # fmt: skip
