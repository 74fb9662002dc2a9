"""Figures of a scaling study: loss against parameters, tokens and compute, with the laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from archbench.presentation.quantities import short
from archbench.report.figures import Axis, Figure, Panel, Series, thinned
from archbench.report.styles import Style
from archbench.study.findings import Finding, Point
from archbench.study.law import Law
from archbench.study.scale_outcome import ScaleOutcome

_CURVE = 40
"""Points of the line of a law."""

_POINTS = (("points", "scale.json; phase quality, metric loss, of the runs in runs.parquet"),)

_CAPTION = (
    "Marks are measured, hollow ones held out. The line is the law fitted to all points; the dotted line, fitted to "
    "the smaller sizes alone, predicts the largest."
)


def ladder_figures(ladder: ScaleOutcome, styles: dict[str, Style]) -> tuple[Figure, ...]:
    """Every figure of a ladder that has points."""
    return (_by_size(ladder, styles), _by_tokens(ladder, styles), _by_compute(ladder, styles))


def _by_size(ladder: ScaleOutcome, styles: dict[str, Style]) -> Figure:
    panels = [
        _compared(
            f"{short(budget)} tokens", Axis("parameters, N", "parameter", "log", ticks=thinned(ladder.plan.sizes, 5)),
            "budget", budget, lambda point: point.N,
            lambda law, N, at: float(law.loss(N, at.D)), ladder, styles,
        )
        for budget in sorted({point.budget for finding in ladder.findings for point in finding.points})
    ]  # fmt: skip
    return _figure("size", "Loss against parameters", panels, ladder, styles)


def _by_tokens(ladder: ScaleOutcome, styles: dict[str, Style]) -> Figure:
    panels = [
        _compared(
            f"{short(size)} parameters",
            Axis("training tokens, D", "token", "log", ticks=thinned(ladder.plan.budgets, 5)),
            "size", size, lambda point: point.D,
            lambda law, D, at: float(law.loss(at.N, D)), ladder, styles,
        )
        for size in sorted({point.size for finding in ladder.findings for point in finding.points})
    ]  # fmt: skip
    return _figure("tokens", "Loss against training tokens", panels, ladder, styles)


def _by_compute(ladder: ScaleOutcome, styles: dict[str, Style]) -> Figure:
    series = []
    for finding in ladder.findings:
        for size in sorted({point.size for point in finding.points}):
            points = sorted((point for point in finding.points if point.size == size), key=lambda point: point.D)
            series.append(
                Series(
                    finding.architecture, styles[finding.architecture], tuple(point.flops for point in points),
                    tuple(point.loss for point in points), drawn="line+points", role=f"{short(size)} parameters",
                    notes=tuple(f"{short(size)} parameters, {short(point.budget)} tokens" for point in points),
                )
            )  # fmt: skip
    return Figure(
        "compute", "Loss against compute",
        "Each line is one size, from its smallest budget to its largest. At a number of FLOPs, the lowest line of an "
        "architecture is its best size.",
        (_panel("compute", Axis("training FLOPs", "FLOP", "log"), series, ladder),),
        provenance=_POINTS,
    )  # fmt: skip


def _compared(
    title: str,
    x: Axis,
    held: Literal["size", "budget"],
    value: int,
    across: Callable[[Point], float],
    height: Callable[[Law, float, Point], float],
    ladder: ScaleOutcome,
    styles: dict[str, Style],
) -> Panel:
    """The points of every architecture at one size or one budget."""
    series = []
    for finding in ladder.findings:
        points = [point for point in finding.points if getattr(point, held) == value]
        if points:
            series += _drawn(finding, points, styles, across, height)
    return _panel(title, x, series, ladder)


def _drawn(
    finding: Finding,
    points: Sequence[Point],
    styles: dict[str, Style],
    across: Callable[[Point], float],
    height: Callable[[Law, float, Point], float],
) -> list[Series]:
    """One architecture in one panel: its marks, and its laws if it has them.

    Args:
        across: x of a point.
        height: loss that a law predicts at x; the point has the quantity that is constant in the panel.
    """
    name, style, at = finding.architecture, styles[finding.architecture], points[0]
    xs = [across(point) for point in points]
    largest = max(point.size for point in finding.points)
    test = finding.held_out
    unseen = [point for point in points if test is not None and point.size == largest]
    seen = [point for point in points if point not in unseen]
    series = []
    if finding.fitted is not None and len(points) > 1:
        grid = _between(min(xs), max(xs))
        law = finding.fitted.law
        series.append(
            Series(name, style, grid, tuple(height(law, x, at) for x in grid), drawn="curve", role="law of all points")
        )
    if test is not None and unseen and len(points) > 1:
        start = max((across(point) for point in seen), default=min(xs))
        grid = _between(min(start, max(xs)), max(xs))
        predicted = tuple(height(test.fitted.law, x, unseen[0]) for x in grid)
        series.append(Series(name, style, grid, predicted, drawn="thin", role="law of the smaller sizes"))
    for own, hollow in ((seen, False), (unseen, True)):
        if own:
            several = all(len(point.losses) > 1 for point in own)
            series.append(
                Series(
                    name, style, tuple(across(point) for point in own), tuple(point.loss for point in own),
                    low=tuple(min(point.losses) for point in own) if several else (),
                    high=tuple(max(point.losses) for point in own) if several else (),
                    drawn="points" if finding.fitted is not None else "line+points", hollow=hollow,
                    role="held out" if hollow else "measured",
                )
            )  # fmt: skip
    return series


def _between(low: float, high: float) -> tuple[float, ...]:
    return tuple(float(f"{low * (high / low) ** (step / (_CURVE - 1)):.6g}") for step in range(_CURVE))


def _panel(title: str, x: Axis, series: Sequence[Series], ladder: ScaleOutcome) -> Panel:
    """A panel with room around the points and the same y axis as all others."""
    xs = [at for one in series for at in one.x]
    losses = [value for finding in ladder.findings for point in finding.points for value in point.losses]
    margin = 0.06 * (max(losses) - min(losses)) or 0.1
    y = Axis("validation loss", "nats/token", limits=(min(losses) - margin, max(losses) + margin))
    return Panel(title, replace(x, limits=(min(xs) / 1.15, max(xs) * 1.15)), y, tuple(series))


def _figure(key: str, title: str, panels: Sequence[Panel], ladder: ScaleOutcome, styles: dict[str, Style]) -> Figure:
    fitted = any(finding.fitted is not None for finding in ladder.findings)
    caption = _CAPTION if fitted else "Every mark is measured; they are too few to fit a law."
    several = ladder.plan.seeds > 1
    spread = " Bars reach from the lowest to the highest seed." if several else " One seed: its spread is unknown."
    return Figure(
        key, title, caption + spread, tuple(panels), "grid" if len(panels) <= 3 else "switch",
        provenance=_POINTS,
    )  # fmt: skip
