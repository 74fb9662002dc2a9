"""Figures of training: loss and validation against tokens, FLOPs and seconds; quality against the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from archbench.report.evidence import Evidence
from archbench.report.figures import Axis, Figure, Panel, Series
from archbench.study.learning_rates import Tuning

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

POINTS = 80
"""Most points of a curve; longer ones average neighbouring steps."""

_SPENDING = (
    ("tokens", "training tokens", "token"),
    ("FLOPs", "training FLOPs", "FLOP"),
    ("seconds", "training time", "s"),
)


@dataclass(frozen=True)
class _Run:
    """The curve of one run: x, (n,), by tokens, FLOPs or seconds; values, (n,)."""

    run_id: str
    name: str
    seed: int
    diverged: bool
    x: dict[str, np.ndarray]
    values: np.ndarray


def loss_figure(evidence: Evidence) -> Figure | None:
    """Training loss against tokens, FLOPs and seconds; None without a loss."""
    return _figure(
        evidence, "loss", "Training loss", "loss", Axis("training loss", "nats/token"),
        "Mean over seeds; the band reaches from the lowest to the highest seed, or of a run alone, from the lowest to "
        "the highest update that a point averages. Steps are averaged to at most "
        f"{POINTS} points, and the first tenth may be above the frame.",
    )  # fmt: skip


def validation_figure(evidence: Evidence) -> Figure | None:
    """Bits per byte of the validation text during training; None if measured less than twice."""
    return _figure(
        evidence, "validation", "Validation during training", "validation_bits_per_byte",
        Axis("bits per byte", "bit/byte"), "Mean over seeds; the band reaches from the lowest to the highest seed.",
    )  # fmt: skip


def tuning_figure(evidence: Evidence) -> Figure | None:
    """Bits per byte against the learning rate, with the chosen rate; None without tuning."""
    series: list[Series] = []
    for tuned in evidence.tuning:
        series += _tuning_series(tuned, evidence)
    if not series:
        return None
    rates = sorted({point.learning_rate for tuned in evidence.tuning for point in tuned.points})
    note = [
        f"{tuned.architecture}: {'flagged; ' if tuned.flagged else ''}{tuned.note or 'no optimum inside the search'}."
        for tuned in evidence.tuning
        if tuned.note or tuned.flagged
    ]
    panel = Panel(
        "learning rate", Axis("learning rate", "1", "log", ticks=tuple(rates) if len(rates) <= 8 else ()),
        Axis("bits per byte", "bit/byte"), tuple(series),
    )  # fmt: skip
    return Figure(
        "learning-rate", "Learning rates tried",
        "Mean over the tuning seeds at a part of the budget; bars reach from the lowest to the highest seed. The large "
        "hollow mark is the chosen rate, the minimum of a parabola in log learning rate; its height is interpolated.",
        (panel,), remarks=tuple(note),
    )  # fmt: skip


def _figure(evidence: Evidence, key: str, title: str, metric: str, y: Axis, caption: str) -> Figure | None:
    runs = _runs(evidence, metric)
    if not runs:
        return None
    panels = []
    for short, long, unit in _SPENDING:
        having = [run for run in runs if short in run.x]
        series = [one for name in evidence.names for one in _named(name, having, short, evidence)]
        if series:
            panels.append(Panel(short, Axis(long, unit, zero=True), replace(y, limits=_limits(series)), tuple(series)))
    if any(run.diverged for run in runs):
        caption += " A thin dotted line is a run that diverged, up to that point."
    return Figure(
        key, title, caption, tuple(panels), arrangement="switch",
        provenance=(("rows", f"phase train, metric {metric}"), ("runs", ", ".join(run.run_id for run in runs))),
    )  # fmt: skip


def _named(name: str, runs: Sequence[_Run], spending: str, evidence: Evidence) -> list[Series]:
    """The mean of an architecture's finished runs, up to the end of the shortest, and each diverged run."""
    import numpy as np

    own = [run for run in runs if run.name == name]
    style = evidence.styles[name]
    series = []
    if whole := [run for run in own if not run.diverged]:
        length = min(len(run.values) for run in whole)
        y = _averaged(np.stack([run.values[:length] for run in whole]))
        x = _averaged(np.stack([run.x[spending][:length] for run in whole])).mean(axis=0)
        several = len(whole) > 1
        low, high = (y.min(axis=0), y.max(axis=0)) if several else (y[0][:0], y[0][:0])
        if len(runs) == 1 and length > POINTS:
            starts = _starts(length)
            low, high = (reach.reduceat(whole[0].values, starts) for reach in (np.minimum, np.maximum))
        series.append(
            Series(
                name, style, _plain(x), _plain(y.mean(axis=0)),
                low=_plain(low), high=_plain(high),
                band=True, role=f"mean of {len(whole)} seeds" if several else f"seed {whole[0].seed}",
                drawn="line" if length > 20 else "line+points",
            )
        )  # fmt: skip
    for run in own:
        if run.diverged:
            y, x = _averaged(run.values[None])[0], _averaged(run.x[spending][None])[0]
            series.append(Series(name, style, _plain(x), _plain(y), drawn="thin", role=f"seed {run.seed}, diverged"))
    return series


def _averaged(values: np.ndarray) -> np.ndarray:
    """(n, steps) -> (n, at most POINTS): means of neighbouring steps."""
    import numpy as np

    steps = values.shape[1]
    if steps <= POINTS:
        return values
    starts = _starts(steps)
    means: np.ndarray = np.add.reduceat(values, starts, axis=1) / np.diff([*starts, steps])
    return means


def _starts(steps: int) -> np.ndarray:
    """The first step of each point."""
    import numpy as np

    return np.linspace(0, steps, POINTS, endpoint=False).astype(int)


def _limits(series: Sequence[Series]) -> tuple[float, float] | None:
    """From the lowest value to the highest after the first tenth, in which loss falls steeply."""
    late = [
        value
        for one in series
        for value in (*one.y[len(one.y) // 10 :], *one.low, *one.high[len(one.high) // 10 :])
        if value is not None
    ]
    if not late:
        return None
    margin = 0.04 * (max(late) - min(late))
    return min(late) - margin, max(late) + margin


_TIMES = ("step_seconds", "first_step_seconds", "asked_step_seconds")
"""Of an update, each of which has one of these."""


def _runs(evidence: Evidence, metric: str) -> list[_Run]:
    few = evidence.rows[["phase", "run_id", "name", "seed", "metric", "value", "repeat", "tokens_seen"]]
    metrics = (metric, "flops_per_token", *_TIMES, "diverged")
    rows = few[(few.phase == "train") & few.metric.isin(metrics) & few.run_id.isin(evidence.learners)]
    by_run = {str(run_id): own for run_id, own in rows.groupby("run_id", sort=False)}
    return [
        run for run_id in evidence.learners if run_id in by_run and (run := _run(by_run[run_id], metric)) is not None
    ]


def _run(rows: pd.DataFrame, metric: str) -> _Run | None:
    values = rows[(rows.metric == metric) & rows.value.notna() & rows.tokens_seen.notna()].sort_values("repeat")
    if len(values) < 2:
        return None
    tokens = values.tokens_seen.to_numpy(dtype=float)
    x = {"tokens": tokens}
    per_token = rows[rows.metric == "flops_per_token"].value.dropna()
    if len(per_token) and per_token.iloc[0] > 0:
        x["FLOPs"] = tokens * float(per_token.iloc[0])
    timed = rows[rows.metric.isin(_TIMES) & rows.value.notna()].sort_values("repeat")
    if len(timed) and timed.tokens_seen.notna().all():
        spent = dict(zip(timed.tokens_seen.astype(int), timed.value.cumsum(), strict=True))
        if all(int(seen) in spent for seen in tokens):
            x["seconds"] = values.tokens_seen.astype(int).map(spent).to_numpy(dtype=float)
    first = rows.iloc[0]
    diverged = bool((rows.metric == "diverged").any())
    return _Run(first.run_id, first["name"], int(first.seed), diverged, x, values.value.to_numpy(dtype=float))


def _tuning_series(tuned: Tuning, evidence: Evidence) -> list[Series]:
    points = [point for point in tuned.points if point.mean is not None]
    if len(tuned.points) < 2 or not points:
        return []
    style = evidence.styles[tuned.architecture]
    spreads = [[value for value in point.bits_per_byte if value is not None] for point in points]
    rates, means = [point.learning_rate for point in points], [point.mean for point in points]
    series = [
        Series(
            tuned.architecture, style, tuple(rates), tuple(means), low=tuple(map(min, spreads)),
            high=tuple(map(max, spreads)), drawn="line+points", role="tried",
        )
    ]  # fmt: skip
    rate = tuned.learning_rate
    if rate is not None and rates[0] <= rate <= rates[-1]:
        height = _between(rate, rates, [mean for mean in means if mean is not None])
        flag = "chosen; flagged: at the edge of the search" if tuned.flagged else "chosen"
        series.append(
            Series(
                tuned.architecture,
                style,
                (rate,),
                (height,),
                drawn="points",
                hollow=True,
                heavy=True,
                role=flag,
                label="flagged" if tuned.flagged else "",
            )
        )
    return series


def _between(rate: float, rates: Sequence[float], means: Sequence[float]) -> float:
    import numpy as np

    return float(np.interp(math.log(rate), [math.log(one) for one in rates], means))


def _plain(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
