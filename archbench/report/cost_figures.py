"""Figures of costs: against quality (the Pareto front), against context length, and the speed of kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from archbench.presentation.quantities import counted
from archbench.report.evidence import Evidence, Score
from archbench.report.figures import Axis, Figure, Panel, Scale, Series, Side, thinned, ticks_of
from archbench.report.styles import Style

_COSTS = ("decode", "training_memory", "state")
_QUALITY = Axis("bits per byte", "bit/byte")


_MARGIN = 0.2
"""Room for names on both sides of the points, as a share of their span."""


def pareto_figure(evidence: Evidence) -> Figure | None:
    """Bits per byte against decoding time, memory and the cost of training; None for fewer than two architectures."""
    scores = {score.name: score for score in evidence.scores}
    panels = []
    for metric in _COSTS:
        rows = [row for row in evidence.costs if row.metric == metric and row.value and row.architecture in scores]
        rows.sort(key=lambda row: evidence.names.index(row.architecture))
        if len(rows) > 1:
            points = [(scores[row.architecture], float(row.value or 0)) for row in rows]
            panels.append(_pareto(evidence, rows[0].label, rows[0].unit, points))
    by_time = evidence.outcome is not None and evidence.outcome.plan.match == "time"
    field, title, unit = (
        ("training_flops", "training FLOPs", "FLOP") if by_time else ("training_seconds", "training time", "s")
    )
    spent = [(scores[row.architecture], getattr(row, field)) for row in evidence.spent if row.architecture in scores]
    if len(points := [(score, value) for score, value in spent if value]) > 1:
        panels.append(_pareto(evidence, title, unit, points))
    if not panels:
        return None
    return Figure(
        "pareto", "Quality against cost",
        "Lower left is better. The stepped line is the Pareto front: nothing measured is both better and cheaper than "
        f"a mark on it; hollow marks are dominated. Bars: {evidence.score_interval}. The front ignores the bars.",
        tuple(panels),
        provenance=(("quality", "bits per byte of the validation text"), ("costs", "medians; see the tables above")),
    )  # fmt: skip


def _pareto(evidence: Evidence, title: str, unit: str, points: Sequence[tuple[Score, float]]) -> Panel:
    front = [
        (score, cost)
        for score, cost in points
        if not any(
            other.value <= score.value and their <= cost and (other.value, their) != (score.value, cost)
            for other, their in points
        )
    ]
    best = {score.name for score, _ in front}
    costs = [cost for _, cost in points]
    scale: Scale = "log" if max(costs) > 8 * min(costs) else "linear"
    steps = sorted({(cost, score.value) for score, cost in front})
    series = [
        Series(
            "Pareto front", None, tuple(x for x, _ in steps), tuple(y for _, y in steps), drawn="steps", role="front"
        )
    ]
    sides = _sides(points, best, scale)
    for (score, cost), side in zip(points, sides, strict=True):
        spread = score.low is not None and score.high is not None
        role = "on the front" if score.name in best else "dominated"
        series.append(
            Series(
                score.name, evidence.styles[score.name], (cost,), (score.value,), drawn="points",
                low=(score.low,) if spread else (), high=(score.high,) if spread else (),
                hollow=score.name not in best, label=_label(score.name), side=side, role=role,
            )
        )  # fmt: skip
    limits = _padded(min(costs), max(costs), scale)
    return Panel(title, Axis(title, unit, scale, ticks_of(costs, unit, scale), limits=limits), _QUALITY, tuple(series))


def _padded(low: float, high: float, scale: Scale) -> tuple[float, float]:
    """Limits with room for names on both sides."""
    if scale == "log":
        reach = (high / low) ** _MARGIN
        return low / reach, high * reach
    reach = _MARGIN * (high - low) or 0.1 * high
    return low - reach, high + reach


def _sides(points: Sequence[tuple[Score, float]], front: set[str], scale: Scale) -> list[Side]:
    """The side of each point's name that avoids other names and points, and stays inside the plot.

    Names on the front are below left or above right, where its line does not run.
    """
    across = [math.log(cost) if scale == "log" else cost for _, cost in points]
    lowest, highest = min(score.value for score, _ in points), max(score.value for score, _ in points)
    span = highest - lowest or 1.0
    placed = list(zip(_unit(across), [(score.value - lowest) / span for score, _ in points], strict=True))
    taken: list[_Box] = []
    for (x, y), (score, _) in zip(placed, points, strict=True):
        reach = [abs(end - score.value) / span for end in (score.low, score.high) if end is not None]
        half = max((0.03, *reach))
        taken.append((x - 0.02, x + 0.02, y - half, y + half))
    chosen: list[Side] = []
    for (x, y), (score, _) in zip(placed, points, strict=True):
        allowed: tuple[Side, ...] = ("bottom left", "top right") if score.name in front else tuple(_OFFSETS)
        boxes = {side: _box(x, y, side, _label(score.name)) for side in allowed}
        side = min(allowed, key=lambda one: _overlap(boxes[one], taken))
        taken.append(boxes[side])
        chosen.append(side)
    return chosen


_OFFSETS: dict[Side, tuple[int, int]] = {
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top right": (1, 1),
    "top left": (-1, 1),
    "bottom left": (-1, -1),
    "bottom right": (1, -1),
}
"""Position of a name beside its point: right and up. Preferred sides come first."""

_Box = tuple[float, float, float, float]
"""Left, right, bottom, top; the points span 0 to 1."""


def _box(x: float, y: float, side: Side, label: str) -> _Box:
    """The approximate extent of a label, whose letters are about a fortieth of the plot wide."""
    right, up = _OFFSETS[side]
    width = 0.025 * len(label)
    start = x + 0.03 if right > 0 else x - 0.03 - width
    middle = y + 0.06 * up
    return start, start + width, middle - 0.04, middle + 0.04


def _overlap(box: _Box, taken: Sequence[_Box]) -> float:
    """Area that ``box`` shares with others, plus how far it extends beyond the plot."""
    shared = sum(
        max(0.0, min(box[1], other[1]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[2], other[2]))
        for other in taken
    )
    return shared + max(0.0, -_MARGIN - box[0]) + max(0.0, box[1] - 1 - _MARGIN)


def _label(name: str) -> str:
    """A name of at most 18 letters; the legend has the whole."""
    return name if len(name) <= 18 else name[:17] + "…"


def _unit(values: Sequence[float]) -> list[float]:
    span = max(values) - min(values) or 1.0
    return [(value - min(values)) / span for value in values]


def context_figure(evidence: Evidence) -> Figure | None:
    """Decoding, prefill, state and memory against context length; None for fewer than two lengths."""
    quantities = (
        ("seconds_per_token", "seconds_per_token", "decoding, a token", "s"),
        ("prefill_seconds", "seconds_to_first_token", "prefill", "s"),
        ("state_bytes", "", "decoding state", "B"),
        ("peak_memory_bytes", "", "peak memory", "B"),
    )
    lengths = sorted({row.context_length for row in evidence.curves})
    if len(lengths) < 2:
        return None
    alone = evidence.outcome is None  # such runs vary the prompt, not what is allocated
    across = Axis("prompt length" if alone else "context length", "token", "log", ticks=thinned(lengths))
    panels, spreads = [], _spreads(evidence)
    for field, metric, title, unit in quantities:
        series = []
        for name in evidence.names:
            own = sorted(
                (row for row in evidence.curves if row.architecture == name), key=lambda row: row.context_length
            )
            points = [
                (row.context_length, value) for row in own if (value := getattr(row, field)) is not None and value > 0
            ]
            if points:
                x, y = zip(*points, strict=True)
                samples = [spreads.get((name, metric, length)) for length in x]
                found = [one for one in samples if one is not None]
                barred = bool(found) and len(found) == len(samples)
                series.append(
                    Series(
                        name, evidence.styles[name], x, y,
                        low=tuple(one.low for one in found) if barred else (),
                        high=tuple(one.high for one in found) if barred else (),
                        notes=tuple("" if one is None else one.note for one in samples),
                        drawn="line+points" if len(lengths) > 2 else "points",
                    )
                )  # fmt: skip
        if series:
            values = [value for one in series for value in (*one.y, *one.low, *one.high) if value is not None]
            scale: Scale = "log" if max(values) > 3 * min(values) else "linear"
            panels.append(Panel(title, across, Axis(title, unit, scale, ticks_of(values, unit, scale)), tuple(series)))
    if not panels:
        return None
    causes = [
        f"{row.architecture} at {row.context_length:,}: {row.cause.rstrip('.')}."
        for row in evidence.curves
        if row.cause
    ]
    return Figure(
        "context", f"Cost against {across.title}",
        "One sequence at a time. Bars of times: the IQR of the samples, which says nothing about another run. "
        + ("" if len(lengths) > 2 else "Two lengths show no trend, and are not joined. ")
        + "Scales are logarithmic, except for quantities that change little.", tuple(panels),
        remarks=tuple(causes),
        provenance=(("measured", "one sequence; medians over repeats"),),
    )  # fmt: skip


@dataclass(frozen=True)
class _Spread:
    """Quartiles of the samples of one time."""

    low: float
    high: float
    note: str


def _spreads(evidence: Evidence) -> dict[tuple[str, str, int], _Spread]:
    """Name, metric and length -> quartiles, number of samples and disturbance, of the rows behind the curves."""
    rows = evidence.rows
    rows = rows[rows.phase.isin(["prefill", "decode"]) & (rows.batch_size == 1) & rows.value.notna()]
    length = "prompt_length"
    if evidence.outcome is not None:
        rows, length = rows[rows.role == "cost"], "context_length"
    found = {}
    for key, own in rows.groupby(["name", "metric", length]):
        name, metric, at = cast(tuple[str, str, int], key)
        note = f"{counted(len(own), 'sample')}{', contaminated' if own.contaminated.eq(True).any() else ''}"
        quartiles = own.value.quantile([0.25, 0.75])
        found[name, metric, int(at)] = _Spread(float(quartiles[0.25]), float(quartiles[0.75]), note)
    return found


_KERNELS = {
    "sdpa": Style(1, 1), "triton": Style(2, 0), "flex": Style(3, 2), "reference": Style(0, 3),
    "sdpa-cudnn": Style(4, 4), "sdpa-flash": Style(5, 5), "sdpa-efficient": Style(6, 6), "sdpa-math": Style(7, 7),
}  # fmt: skip
_DIRECTIONS = {
    "forward_flops_per_second": "forward",
    "backward_flops_per_second": "backward",
    "flops_per_second": "forward and backward",
}


def kernel_figure(evidence: Evidence) -> Figure | None:
    """FLOP/s of kernels against length, a panel for each shape and direction; None without rows of kernels."""
    rows = evidence.rows
    rows = rows[(rows.phase == "kernel") & rows.metric.isin(list(_DIRECTIONS)) & rows.value.notna()]
    rows = rows[rows.context_length.notna()]
    if rows.empty:
        return None
    has_parts = set(rows[rows.metric != "flops_per_second"].operation)
    rows = rows[(rows.metric != "flops_per_second") | ~rows.operation.isin(has_parts)]
    names = rows.attention.fillna(rows.operation).str.removesuffix("-autotuned")
    rows = rows.assign(backend=names, operation=rows.operation.where(rows.attention.notna(), "loss"))
    styles = dict(_KERNELS)
    for name in sorted(set(rows.backend) - set(styles)):
        styles[name] = Style(4 + len(styles) % 4, 4 + len(styles) % 5)
    shape = [
        "operation",
        "device_name",
        "dtype",
        "head_width",
        "query_heads",
        "kv_heads",
        "window",
        "model_width",
        "vocab_size",
        "metric",
    ]
    panels = []
    for case, own in rows.groupby(shape, sort=False, dropna=False):
        series = []
        for backend, line in own.groupby("backend"):
            samples = line.groupby("context_length").value
            series.append(
                Series(
                    str(backend), styles[str(backend)], tuple(int(x) for x in samples.median().index),
                    tuple(map(float, samples.median())), tuple(map(float, samples.quantile(0.25))),
                    tuple(map(float, samples.quantile(0.75))), drawn="line+points",
                )
            )  # fmt: skip
        title = _case(dict(zip(shape, case, strict=True)))
        lengths = sorted({int(length) for length in own.context_length})
        across = Axis("length, positions", "token", "log", ticks=thinned(lengths))
        panels.append(Panel(title, across, Axis("speed", "FLOP/s", zero=True), tuple(series)))
    devices = ", ".join(sorted(set(rows.device_name)))
    return Figure(
        "kernels", "Speed of kernels",
        "Median FLOP/s. Only visible pairs of attention count, so causal attention counts half, and backward counts "
        "2.5 × forward.",
        tuple(panels),
        provenance=(("rows", "phase kernel"), ("device", devices), ("runs", ", ".join(rows.run_id.drop_duplicates()))),
    )  # fmt: skip


def _case(case: dict[str, Any]) -> str:
    import pandas as pd

    parts = [f"{str(case['operation']).replace('_', ' ')}, {_DIRECTIONS[case['metric']]}"]
    for column, letter in (
        ("head_width", "D"),
        ("query_heads", "H"),
        ("kv_heads", "G"),
        ("window", "W"),
        ("model_width", "C"),
        ("vocab_size", "V"),
    ):
        if pd.notna(case[column]):
            parts.append(f"{letter} {int(case[column])}")
    return ", ".join([*parts, str(case["dtype"])])
