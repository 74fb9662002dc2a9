"""A figure's panel in characters, for the terminal: bars for named lines, else curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from archbench.presentation.quantities import quantity, spread
from archbench.report.figures import Axis, Panel, Series

HEIGHT = 16
"""Lines of a panel with curves."""

_MARKS = "ox+*#@%&"
_EIGHTHS = " ▏▎▍▌▋▊▉"


def characters(panel: Panel, width: int, *, plain: bool = False) -> list[str]:
    """The lines of a panel, at most ``width`` wide where names allow.

    Args:
        plain: ASCII only, for terminals and files of another encoding.
    """
    return list(_bars(panel, width, plain) if panel.y.labels else _curves(panel, width))


def _bars(panel: Panel, width: int, plain: bool) -> Iterator[str]:
    """From zero; the uppermost line of the panel first."""
    lines = []
    for series in reversed(panel.series):
        value, low, high = series.x[0], series.low[0], series.high[0]
        said = quantity(value, panel.x.unit)
        if low is not None and high is not None and low < high:
            said += f"  {spread(low, high, panel.x.unit)}"
        lines.append((panel.y.labels[round(series.y[0] or 0)], value, said))
    names, texts = max(len(name) for name, _, _ in lines), max(len(said) for _, _, said in lines)
    room, most = max(8, width - names - texts - 4), max(value for _, value, _ in lines)
    for name, value, said in lines:
        eighths = round(8 * room * max(value, 0.0) / most) if most > 0 else 0
        full, part = divmod(eighths, 8)
        bar = "#" * round(eighths / 8) if plain else "█" * full + _EIGHTHS[part].strip()
        yield f"{name:<{names}}  {bar:<{room}}  {said}"


def _curves(panel: Panel, width: int) -> Iterator[str]:
    """Each column of characters has the mean of the points in it; a later series covers an earlier one."""
    points = [(x, y) for series in panel.series for x, y in zip(series.x, series.y, strict=True) if _finite(y)]
    if not points:
        yield "No point is finite."
        return
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    bottom, top = min(y for _, y in points if y is not None), max(y for _, y in points if y is not None)
    marks = [quantity(value, panel.y.unit) for value in (top, (top + bottom) / 2, bottom)]
    margin = max(map(len, marks)) + 1
    columns = max(10, width - margin - 2)
    grid = [[" "] * columns for _ in range(HEIGHT)]
    for series, mark in _marked(panel):
        for column, y in _averaged(series, left, right, columns):
            grid[HEIGHT - 1 - round((HEIGHT - 1) * _share(y, bottom, top))][column] = mark
    middle = HEIGHT - 1 - round((HEIGHT - 1) / 2)
    named = {middle: marks[1]} if top == bottom else {0: marks[0], middle: marks[1], HEIGHT - 1: marks[2]}
    for number, line in enumerate(grid):
        yield f"{named.get(number, ''):>{margin}} │{''.join(line).rstrip()}"
    yield " " * margin + " └" + "─" * columns
    ends = _ends(panel.x, left, right)
    yield " " * (margin + 2) + ends[0] + panel.x.title.center(max(1, columns - len(ends[0]) - len(ends[1]))) + ends[1]
    yield "  ".join(
        f"{mark} {series.name}" for series, mark in zip(panel.series, _MARKS * len(panel.series), strict=False)
    )


def _marked(panel: Panel) -> Iterator[tuple[Series, str]]:
    return zip(panel.series, itertools.cycle(_MARKS), strict=False)


def _averaged(series: Series, left: float, right: float, columns: int) -> Iterator[tuple[int, float]]:
    inside: dict[int, list[float]] = {}
    for x, y in zip(series.x, series.y, strict=True):
        if y is not None and math.isfinite(y):
            inside.setdefault(round((columns - 1) * _share(x, left, right)), []).append(y)
    return ((column, sum(values) / len(values)) for column, values in inside.items())


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _ends(axis: Axis, left: float, right: float) -> tuple[str, str]:
    unit = axis.unit if axis.unit != "token" else ""
    return quantity(left, unit), quantity(right, unit)
