"""Speed and memory relative to the baseline: ratios over sweeps, and the noise floor of the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from archbench.study.outcome import Part
from archbench.study.statistics import mean
from archbench.study.verdicts import CONFIDENCE

if TYPE_CHECKING:
    from archbench.study.run_cells import RunCell

CostVerdict = Literal[
    "baseline", "less", "more", "below noise floor", "inconclusive", "exact", "not measured", "withheld"
]


@dataclass(frozen=True)
class Metric:
    """A cost: the median of the rows of one phase and metric; ``batch`` selects among batch sizes."""

    name: str
    label: str
    unit: str
    phase: str
    metric: str
    batch: Literal["smallest", "largest"] | None = None


METRICS = (
    Metric("train", "training update", "s", "train", "step_seconds"),
    Metric("training_memory", "peak memory of training", "B", "train", "peak_memory_bytes"),
    Metric("prefill", "first token after the longest prompt", "s", "prefill", "seconds_to_first_token", "smallest"),
    Metric("decode", "next token after the longest prompt", "s", "decode", "seconds_per_token", "smallest"),
    Metric("decode_batch", "next token of each in the largest batch", "s", "decode", "seconds_per_token", "largest"),
)
"""Costs measured in turns, with the longest prompts of the profile."""


@dataclass(frozen=True)
class CostRow:
    """One cost of one architecture.

    Attributes:
        label: the metric in words.
        unit: base unit of ``value``.
        value: median over sweeps; None if not measured.
        ratio: to the baseline in the same sweep, geometric mean over sweeps; None for the baseline.
        low, high: 95 % interval of the ratio over sweeps (Student, on logarithms).
        floor_low, floor_high: the same interval for the baseline against itself, from two turns in each sweep.
        verdict: less or more than the baseline, or below the noise floor; withheld where the times of one sweep come
            from several machines.
    """

    metric: str
    label: str
    unit: str
    architecture: str
    value: int | float | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    verdict: CostVerdict = "baseline"


class CostCurve(Part):
    """Costs at one context length."""

    architecture: str
    context_length: int
    prefill_seconds: float | None
    seconds_per_token: float | None
    state_bytes: float | None
    peak_memory_bytes: float | None
    cause: str | None


class Position(Part):
    """Loss at one position, in nats per token, on texts of one context length."""

    architecture: str
    context_length: int
    multiple: int
    position: int
    loss: float | None
    cause: str | None


def cost_rows(
    cells: Sequence[RunCell], frames: Mapping[str, pd.DataFrame], baseline: str, architectures: Sequence[str]
) -> list[CostRow]:
    """Every cost of every architecture.

    Args:
        cells: of the stage ``speed``.
        frames: cell key -> tidy rows, for finished cells.
        architectures: names, in the order of the rows.
    """
    rows = []
    for metric in METRICS:
        values: dict[tuple[str, bool], dict[int, float]] = {}
        for cell in cells:
            value = _median(frames.get(cell.key), metric.phase, metric.metric, metric.batch)
            if value is not None:
                assert cell.block is not None
                values.setdefault((cell.architecture, cell.repeated), {})[cell.block] = value
        own, again = values.get((baseline, False), {}), values.get((baseline, True), {})
        floor = _interval([math.log(again[block] / own[block]) for block in own.keys() & again.keys()])
        rows += [
            _row(metric, name, values.get((name, False), {}), own, floor, name == baseline) for name in architectures
        ]
    return [row for row in rows if any(one.value is not None for one in rows if one.metric == row.metric)]


def withheld(row: CostRow) -> CostRow:
    """The row without what compares it with others."""
    return CostRow(row.metric, row.label, row.unit, row.architecture, row.value, verdict="withheld")


def exact_rows(metric: str, label: str, unit: str, values: Mapping[str, float | None], baseline: str) -> list[CostRow]:
    """A cost that is counted, not timed: its ratio has no interval."""
    own = values.get(baseline)
    return [
        CostRow(
            metric, label, unit, name, value,
            ratio=value / own if value is not None and own and name != baseline else None,
            verdict="baseline" if name == baseline else "exact" if value is not None else "not measured",
        )
        for name, value in values.items()
    ]  # fmt: skip


def cost_curves(
    cells: Sequence[RunCell], frames: Mapping[str, pd.DataFrame], causes: Mapping[str, str]
) -> list[CostCurve]:
    """Seconds and bytes at each context length: prefill of most of it, then decoding of the rest."""
    return [
        CostCurve(
            architecture=cell.architecture,
            context_length=cell.context_length,
            prefill_seconds=_median(frame, "prefill", "seconds_to_first_token"),
            seconds_per_token=_median(frame, "decode", "seconds_per_token"),
            state_bytes=_median(frame, "decode", "cache_bytes"),
            peak_memory_bytes=_median(frame, "prefill", "peak_memory_bytes"),
            cause=causes.get(cell.key),
        )
        for cell in cells
        for frame in [frames.get(cell.key)]
    ]


def positions(cells: Sequence[RunCell], frames: Mapping[str, pd.DataFrame]) -> list[Position]:
    """Loss by position, averaged over seeds, in windows of the trained context and of multiples of it."""
    parts = []
    for cell in cells:
        if cell.key in frames:
            frame = frames[cell.key]
            rows = frame[frame.phase == "positions"][["metric", "context_length", "repeat", "value"]]
            parts.append(rows.assign(architecture=cell.architecture, trained=cell.context_length))
    if not parts:
        return []
    found: list[Position] = []
    keys = ["architecture", "trained", "metric", "context_length", "repeat"]
    means = pd.concat(parts).groupby(keys, sort=True, as_index=False).value.mean()
    for name, trained, metric, length, position, value in means.itertuples(index=False):
        at = {"architecture": name, "context_length": int(length), "multiple": int(length) // int(trained)}
        if metric == "loss":
            found.append(Position(**at, position=int(position), loss=float(value), cause=None))
        elif value != 1:  # "readable" is 0, or null if the text is too short
            cause = "its weights fit no model of that length"
            cause = "no document of the text is so long" if math.isnan(value) else cause
            found.append(Position(**at, position=0, loss=None, cause=cause))
    return found


def _row(
    metric: Metric,
    name: str,
    values: Mapping[int, float],
    own: Mapping[int, float],
    floor: tuple[float, float] | None,
    is_baseline: bool,
) -> CostRow:
    value = float(np.median(list(values.values()))) if values else None
    floor_low, floor_high = floor if floor is not None else (None, None)
    row = CostRow(metric.name, metric.label, metric.unit, name, value, floor_low=floor_low, floor_high=floor_high)
    if is_baseline:
        return row
    logs = [math.log(values[block] / own[block]) for block in sorted(values.keys() & own.keys())]
    if not logs:
        return replace(row, floor_low=None, floor_high=None, verdict="not measured")
    ratio = math.exp(sum(logs) / len(logs))
    low, high = _interval(logs) or (None, None)
    return replace(row, ratio=ratio, low=low, high=high, verdict=_verdict(ratio, low, high, floor))


def _verdict(ratio: float, low: float | None, high: float | None, floor: tuple[float, float] | None) -> CostVerdict:
    """A difference counts if its interval leaves out 1 and it is larger than the noise floor."""
    if low is None or high is None or floor is None:
        return "inconclusive"
    noise = max(abs(math.log(bound)) for bound in floor)
    if abs(math.log(ratio)) <= noise:
        return "below noise floor"
    return "less" if high < 1 else "more" if low > 1 else "inconclusive"


def _interval(logs: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of the geometric mean, from one logarithm per sweep, the unit that varies (Kalibera and Jones
    2013, Rigorous benchmarking in reasonable time). None for fewer than two sweeps."""
    if len(logs) < 2:
        return None
    low, high = mean(logs).interval(CONFIDENCE)
    return math.exp(low), math.exp(high)


def _median(frame: pd.DataFrame | None, phase: str, metric: str, batch: str | None = None) -> float | None:
    if frame is None:
        return None
    rows = frame[(frame.phase == phase) & (frame.metric == metric)].dropna(subset=["value"])
    if batch is not None and len(rows):
        sizes = rows.batch_size
        if batch == "largest" and sizes.max() == sizes.min():
            return None
        rows = rows[sizes == (sizes.min() if batch == "smallest" else sizes.max())]
        rows = rows[rows.prompt_length == rows.prompt_length.max()]
    return float(rows.value.median()) if len(rows) else None
