"""Costs at a glance: a row for each architecture, a column for each cost, as multiples of the cheapest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archbench.presentation.quantities import digits, quantity
from archbench.presentation.tables import Cell, Column, Table, table
from archbench.study.costs import CostRow

_SHADES = (1.1, 1.5, 2.0, 4.0, 10.0)
"""Multiples at which a cell is shaded more strongly."""


def cost_matrix(costs: Sequence[CostRow], scores: Mapping[str, float | None], baseline: str | None) -> Table | None:
    """Each cost over the lowest one of its column; None for fewer than two architectures.

    Args:
        costs: any number of metrics.
        scores: architecture -> bits per byte; the rows are ranked by them.
        baseline: is marked.
    """
    names = [name for name in scores if any(row.architecture == name and row.value for row in costs)]
    if len(names) < 2:
        return None
    names.sort(key=lambda name: (scores[name] is None, scores[name]))
    by_metric: dict[str, dict[str, CostRow]] = {}
    for row in costs:
        by_metric.setdefault(row.metric, {})[row.architecture] = row
    columns = [Column("architecture", "name"), Column("bits per byte", unit="bit/byte", hint="less is better")]
    cells = []
    for own in by_metric.values():
        best = min((row.value for row in own.values() if row.value), default=None)
        if best is None:
            continue
        unit, label = next((row.unit, row.label) for row in own.values())
        columns.append(Column(label, unit="1", hint=f"multiples of the lowest, {quantity(best, unit)}"))
        cells.append([_cell(own[name], best, _noise(own)) if name in own else None for name in names])
    titles = [Cell(f"{name} (baseline)" if name == baseline else name, name) for name in names]
    rows = [
        [title, scores[name], *(column[at] for column in cells)]
        for at, (title, name) in enumerate(zip(titles, names, strict=True))
    ]
    floors = any(_noise(own) > 1 for own in by_metric.values())
    noise = (
        "Grey, with ≈: the baseline differs as much from itself on this machine, so the cell may be chance."
        if floors
        else "No noise floor was measured: small multiples may be chance."
    )
    caption = f"The best quality first. Multiples of the lowest cost in the column; darker is more. {noise}"
    return table("matrix", "Costs, relative to the lowest", columns, rows, caption=caption)


def _noise(rows: Mapping[str, CostRow]) -> float:
    """The multiple that the baseline reaches against itself; 1 for exact costs and without a noise floor."""
    ends = [end for row in rows.values() for end in (row.floor_low, row.floor_high) if end]
    return max((max(end, 1 / end) for end in ends), default=1.0)


def _cell(row: CostRow, best: float, noise: float) -> Cell | None:
    if not row.value:
        return None
    multiple = row.value / best
    text = f"{digits(multiple)} ×"
    if 1 < multiple <= noise:
        return Cell(f"≈ {text}", multiple, "noise")
    shade = sum(multiple >= edge for edge in _SHADES)
    return Cell(text, multiple, "lowest" if multiple == 1 else f"shade-{shade}" if shade else "")
