"""Every sample of the times of one run, and the history of runs by date and revision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from archbench.presentation.quantities import counted
from archbench.report.evidence import Evidence
from archbench.report.figures import Axis, Figure, Panel, Scale, Series, ticks_of
from archbench.report.run_limits import case_of

if TYPE_CHECKING:
    import pandas as pd

    from archbench.report.styles import Style

MOST = 1500
"""Samples drawn of one case."""

_TIMES = (
    ("prefill", "seconds_to_first_token", "first token"),
    ("decode", "seconds_per_token", "next token"),
)
_TRACED = (
    ("quality", "bits_per_byte", "bits per byte", "bit/byte"),
    ("train", "tokens_per_second", "training speed", "token/s"),
    ("decode", "seconds_per_token", "next token", "s"),
    ("train", "peak_memory_bytes", "peak memory of training", "B"),
)


def sample_figure(evidence: Evidence) -> Figure | None:
    """Every update and every sample of prefill and decoding of one run; None for several runs, or without times."""
    rows = evidence.rows
    if rows.run_id.nunique() != 1 or not evidence.names:
        return None
    style, thinned, panels = evidence.styles[evidence.names[0]], [], []
    updates = rows[(rows.phase == "train") & (rows.metric == "step_seconds")].dropna(subset=["value"])
    if len(updates):
        shown = _evenly(updates.sort_values("repeat"))
        if len(shown) < len(updates):
            thinned.append(f"Training: {len(shown):,} of {len(updates):,} updates are drawn, evenly chosen.")
        panels.append(_updates(evidence.names[0], style, shown, float(updates.value.median())))
    for phase, metric, title in _TIMES:
        own = rows[(rows.phase == phase) & (rows.metric == metric)].dropna(subset=["value", "prompt_length"])
        cases = [(case_of(case), _evenly(case), case.value) for _, case in own.groupby(["batch_size", "prompt_length"])]
        if cases:
            panels.append(_cases(evidence.names[0], style, title, cases))
    if not panels:
        return None
    return Figure(
        "samples", "Speed, with every sample",
        "Training: the time of each update, in order, and their median. Below: each sample of prefill and decoding, by "
        "prompt and batch; the filled mark is the median, and its bar the IQR. A trend, two bands or a long tail say "
        "that a median hides something.",
        tuple(panels), remarks=tuple(thinned),
        provenance=(("rows", "step_seconds, seconds_to_first_token and seconds_per_token"),),
    )  # fmt: skip


def _evenly(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[:: -(-len(rows) // MOST)]


def _updates(name: str, style: Style, rows: pd.DataFrame, median: float) -> Panel:
    steps = tuple(int(step) for step in rows.repeat)
    values = tuple(map(float, rows.value))
    ends = (float(steps[0]), float(steps[-1]))
    return Panel(
        "training update", Axis("update", "1", zero=True), Axis("training update", "s"),
        (
            Series(name, style, steps, values, drawn="points", sideways=True, hollow=True, role="update"),
            Series("median", None, ends, (median, median), drawn="curve", role="median"),
        ),
    )  # fmt: skip


def _cases(name: str, style: Style, title: str, cases: Sequence[tuple[str, pd.DataFrame, pd.Series[float]]]) -> Panel:
    series = []
    for line, (_, shown, every) in enumerate(reversed(cases)):
        low, middle, high = (float(every.quantile(share)) for share in (0.25, 0.5, 0.75))
        values = tuple(map(float, shown.value))
        flat = (float(line),) * len(values)
        series += [
            Series(name, style, values, flat, drawn="points", sideways=True, hollow=True, role="sample"),
            Series(
                name, style, (middle,), (line + 0.3,), low=(low,), high=(high,), drawn="points", sideways=True,
                heavy=True, role=f"median of {counted(len(every), 'sample')}",
            ),
        ]  # fmt: skip
    values = tuple(value for one in series for value in one.x)
    scale: Scale = "log" if max(values) > 4 * min(values) > 0 else "linear"
    labels = tuple(case for case, *_ in reversed(cases))
    across = Axis(title, "s", scale, ticks_of(values, "s", scale))
    ticks = tuple(float(line) for line in range(len(cases)))
    return Panel(title, across, Axis("", ticks=ticks, labels=labels, limits=(-0.5, len(cases) - 0.3)), tuple(series))


def history_figure(evidence: Evidence) -> Figure | None:
    """Quality, speed and memory of each run by its date; None for fewer than three runs, or runs of one time."""
    columns = ["name", "run_id", "time_utc", "git_revision", "phase", "metric", "value"]
    named = evidence.rows["name"].isin(evidence.names) & (evidence.rows.phase != "probe")
    rows = evidence.rows.loc[named, columns]
    if evidence.outcome is not None or rows.run_id.nunique() < 3 or rows.time_utc.nunique() < 2:
        return None
    panels = []
    for phase, metric, title, unit in _TRACED:
        own = rows[(rows.phase == phase) & (rows.metric == metric)].dropna(subset=["value"])
        series = [one for name in evidence.names if (one := _traced(own[own["name"] == name], name, evidence))]
        values = [value for one in series for value in one.y if value is not None]
        if len(values) > 2:
            times = sorted({x for one in series for x in one.x})
            across = Axis("date (UTC)", "date", ticks=_spaced(times))
            up = Axis(title, unit, ticks=ticks_of(values, unit, "linear"))
            panels.append(Panel(title, across, up, tuple(series)))
    if not panels:
        return None
    revisions = rows.git_revision.fillna("unknown").astype(str).nunique()
    return Figure(
        "history", "History by date",
        "Medians of each run at the time when it began, joined by architecture and configuration; the revision stands "
        "in the text of each point and in its data. A step that other runs of the day share is the machine's.",
        tuple(panels),
        remarks=(f"{counted(rows.run_id.nunique(), 'run')} of {counted(revisions, 'revision')}.",),
        provenance=(("rows", "one median for each run and metric"),),
    )  # fmt: skip


def _traced(rows: pd.DataFrame, name: str, evidence: Evidence) -> Series | None:
    if rows.empty:
        return None
    runs = [(own.time_utc.min(), own) for _, own in rows.groupby("run_id")]
    runs.sort(key=lambda run: run[0])
    notes = [f"git {str(own.git_revision.iloc[0])[:12]}, {own.run_id.iloc[0]}" for _, own in runs]
    return Series(
        name, evidence.styles[name], tuple(time.timestamp() for time, _ in runs),
        tuple(float(own.value.median()) for _, own in runs), notes=tuple(notes), drawn="line+points",
    )  # fmt: skip


def _spaced(times: Sequence[float], most: int = 5) -> tuple[float, ...]:
    """At most five times, no two closer than a sixth of the whole."""
    apart = (times[-1] - times[0]) / (most + 1)
    kept = [times[0]]
    for time in times[1:-1]:
        if time - kept[-1] >= apart and times[-1] - time >= apart:
            kept.append(time)
    return (*kept, times[-1])
