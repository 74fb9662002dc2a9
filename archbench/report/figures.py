"""Figures as data, in base units. :mod:`archbench.report.vega` draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from archbench.presentation.quantities import BINARY, compact, number, quantity
from archbench.report.styles import Style

Scale = Literal["linear", "log"]
Side = Literal["top center", "top left", "top right", "middle right", "middle left", "bottom left", "bottom right"]


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: the quantity.
        unit: base unit of the values: s, B, token, parameter, FLOP, FLOP/s, bit/byte, nats/token, 1, date, or
            relative (a share, shown as percent).
        scale: linear or log.
        ticks: positions of labels; empty to leave them to the drawing library.
        labels: texts of ``ticks``, for an axis of names.
        limits: lowest and highest value shown at first.
        zero: whether it begins at zero.
    """

    title: str
    unit: str = "1"
    scale: Scale = "linear"
    ticks: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None
    zero: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one architecture or kernel.

    Attributes:
        name: in the legend.
        style: colour and marker; None for muted, without markers.
        x, y: coordinates in base units; a None in ``y`` interrupts the line.
        low, high: interval of each y (of each x if ``sideways``); empty without intervals.
        notes: a text for each point, shown with its values on hover.
        drawn: a line; a computed curve without points; points; both; steps, which hold a value until the next one; or a
            thin line for a single run.
        band: whether the interval is a band instead of a bar.
        sideways: whether the interval belongs to x.
        hollow: whether the points are not filled.
        heavy: whether the bar of the interval is thick.
        label: a text beside each point.
        side: the side of the point on which the label stands.
        role: what distinguishes this series from others of the same name; a column of the data.
    """

    name: str
    style: Style | None
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()
    drawn: Literal["line", "curve", "points", "line+points", "steps", "thin"] = "line"
    band: bool = False
    sideways: bool = False
    hollow: bool = False
    heavy: bool = False
    label: str = ""
    side: Side = "top center"
    role: str = ""


@dataclass(frozen=True)
class Rule:
    """A line at x = ``low``, or a shaded range up to ``high``, with its label."""

    low: float
    high: float | None = None
    text: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Accuracy by row and column, with the values of its seeds; none if not measured. ``chance`` is each row's."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[tuple[float, ...], ...], ...]
    chance: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes, with series or a heat map in it."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...] = ()
    rules: tuple[Rule, ...] = ()
    heat: HeatMap | None = None


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        key: short name, for files and anchors.
        caption: how to read it: the meaning of lines, bands and marks.
        panels: side by side (``grid``), or one at a time with a switch (``switch``).
        remarks: what is missing, and why.
        basis: what the numbers rest on: samples, disturbance, conformance; an image has it too.
        provenance: (what, value) pairs: command, files, runs, versions, machine.
    """

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    arrangement: Literal["grid", "switch"] = "grid"
    remarks: tuple[str, ...] = ()
    basis: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def legend(self) -> tuple[tuple[str, Style], ...]:
        """Names and styles of all series, except those that an axis names."""
        shown = [series for panel in self.panels if not panel.y.labels for series in panel.series]
        return tuple({series.name: series.style for series in shown if series.style is not None}.items())


def data_of(figure: Figure) -> tuple[list[str], list[list[Any]]]:
    """Every value drawn in ``figure``, in base units: column names and rows."""
    if all(panel.heat is not None for panel in figure.panels):
        rows = [
            [row, column, *(f(seeds) if seeds else None for f in (fmean, min, max)), len(seeds), chance]
            for panel in figure.panels
            if panel.heat is not None
            for row, values, chance in zip(panel.heat.rows, panel.heat.values, panel.heat.chance, strict=True)
            for column, seeds in zip(panel.heat.columns, values, strict=True)
        ]
        return ["task", "architecture", "value", "low", "high", "seeds", "chance"], rows
    columns = ["panel", "series", "part", "x", "x_quantity", "x_unit", "y", "y_quantity", "y_unit", "low", "high"]
    rows = [
        _row(panel, series, index)
        for panel in figure.panels
        for series in panel.series
        for index in range(len(series.x))
    ]
    if not any(row[2] for row in rows):
        rows = [[*row[:2], *row[3:]] for row in rows]
        columns.remove("part")
    return columns, rows


def _row(panel: Panel, series: Series, index: int) -> list[Any]:
    x: Any = series.x[index]
    y: Any = series.y[index]
    if panel.y.labels:
        y = panel.y.labels[min(range(len(panel.y.ticks)), key=lambda tick: abs(panel.y.ticks[tick] - y))]
    low = series.low[index] if series.low else None
    high = series.high[index] if series.high else None
    names = (panel.x.title, panel.x.unit), (panel.y.title, "" if panel.y.labels else panel.y.unit)
    return [panel.title, series.name, series.role, x, *names[0], y, *names[1], low, high]


def thinned(values: Sequence[float], most: int = 7) -> tuple[float, ...]:
    """About ``most`` of the sorted distinct ``values``, evenly chosen from the end, for labels on an axis."""
    distinct = sorted(set(values))
    step = -(-len(distinct) // most)
    return tuple(distinct[::-1][::step][::-1])


def ticks_of(values: Sequence[float], unit: str, scale: Scale) -> tuple[float, ...]:
    """Label positions that drawing libraries do not find: of bytes, in powers of two, and of logarithmic scales, with
    about six labels. Empty to leave them to the library."""
    low, high = min(values), max(values)
    if unit == "B":
        return _powers_of_two(low, high) if scale == "log" else _byte_steps(low, high)
    if scale == "linear":
        return ()
    decades = math.log10(high / low)
    leading = (1,) if decades > 3 else (1, 2, 5) if decades > 1 else (1, 2, 3, 4, 5, 6, 8)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [
        float(f"{one}e{power}") for power in powers for one in leading if low / 1.1 <= one * 10.0**power <= high * 1.1
    ]
    return thinned(inside)


def _powers_of_two(low: float, high: float) -> tuple[float, ...]:
    return thinned([2.0**power for power in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)])


def _byte_steps(low: float, high: float) -> tuple[float, ...]:
    step = 2.0 ** math.ceil(math.log2(max(high - low, 1.0) / 4))
    return tuple(step * index for index in range(math.floor(low / step), math.ceil(high / step) + 1))


def tick_text(axis: Axis, index: int) -> str:
    """The text at the axis's tick number ``index``."""
    if axis.labels:
        return axis.labels[index]
    value = axis.ticks[index]
    if axis.unit == "B" and axis.scale == "linear":  # all in one unit, with enough digits to differ
        name, scale = next(((name, scale) for name, scale in BINARY if max(axis.ticks) >= scale), BINARY[-1])
        return f"{f'{value / scale:.3f}'.rstrip('0').rstrip('.')} {name}"
    if len(axis.ticks) == 1:
        return number(value, axis.unit)
    if axis.unit == "date":
        days = axis.ticks[-1] - axis.ticks[0] > 2 * 86400
        return quantity(value, "date")[slice(10) if days else slice(5, None)]
    if axis.unit in ("s", "B"):
        return quantity(value, axis.unit)
    if axis.unit in ("parameter", "token") and value >= 1e4:
        return compact(value).replace(" ", "")
    return f"{value:,.0f}" if value >= 1 else f"{value:.3g}"
