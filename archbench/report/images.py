"""Figures drawn by matplotlib, as PNG files for papers: 300 dots an inch, black on white, nothing interactive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from archbench.report.figures import Axis, Figure, HeatMap, Panel, Rule, Series, tick_text
from archbench.report.styles import HEAT, LIGHT, ink_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS_AN_INCH = 300
_INK, _MUTED, _GRID, _SHADE = "#1a1d21", "#5a626c", "#e6e9ed", "#eceef1"
_MARKED = 10
_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "text.parse_math": False,
}
"""``text.parse_math``: a dollar in a name is a dollar."""


def png(figure: Figure) -> bytes:
    """The figure with all its panels side by side, as the content of a PNG file."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_RC):
        columns = min(len(figure.panels), 3 if len(figure.panels) == 3 else 2)
        lines = -(-len(figure.panels) // columns)
        canvas = Canvas(figsize=_size(figure, columns, lines), layout="constrained", dpi=DOTS_AN_INCH)
        axes = list(canvas.subplots(lines, columns, squeeze=False).flat)
        for panel, axis in zip(figure.panels, axes, strict=False):
            _draw(panel, axis, titled=len(figure.panels) > 1)
        for axis in axes[len(figure.panels) :]:
            axis.set_visible(False)
        if figure.legend:
            _legend(figure, canvas)
        content = BytesIO()
        canvas.savefig(content, format="png", dpi=DOTS_AN_INCH)
    return content.getvalue()


def _size(figure: Figure, columns: int, lines: int) -> tuple[float, float]:
    """Inches: as wide as a page's text."""
    panel = figure.panels[0]
    if panel.heat is not None:
        return 7.0, 0.8 + 0.3 * len(panel.heat.rows)
    if panel.y.labels:
        return 7.0, 0.7 + 0.45 * len(panel.y.labels)
    width = 7.0 if columns > 1 else 5.0
    return width, 0.35 + lines * (2.3 if columns > 1 else 3.1)


def _draw(panel: Panel, axis: Axes, *, titled: bool) -> None:
    if titled and panel.title not in (panel.x.title, panel.y.title) and not _named_by(panel):
        axis.set_title(panel.title)
    if panel.heat is not None:
        _heat(panel.heat, axis)
        return
    for series in panel.series:
        _series(series, axis)
    _axis(panel.x, axis, "x")
    _axis(panel.y, axis, "y")
    for rule in panel.rules:
        _rule(rule, axis)
    axis.grid(axis="x" if panel.y.labels else "both", color=_GRID, linewidth=0.5)
    axis.set_axisbelow(True)


def _named_by(panel: Panel) -> bool:
    """Whether the title only repeats what the axis across says, as "tokens" does of training tokens."""
    return panel.title in panel.x.title or panel.x.unit == "s"


def _series(series: Series, axis: Axes) -> None:
    colour = _MUTED if series.style is None else series.style.light
    y = [math.nan if value is None else value for value in series.y]
    if series.band and series.low:
        axis.fill_between(series.x, _numbers(series.low), _numbers(series.high), color=colour, alpha=0.16, linewidth=0)
    elif series.low:
        _bars(series, axis, colour)
    look: dict[str, Any] = {"color": colour, "linewidth": 1.4, "zorder": 3}
    if series.style is not None:
        large = series.heavy and not series.sideways
        size = 8 if large else 5 if series.drawn == "points" else 3.2
        look |= {"marker": series.style.shape.matplotlib, "markersize": size}
        look |= {"markerfacecolor": "none" if series.hollow else colour, "markeredgewidth": 1.0}
        look |= {"linestyle": "--" if series.style.dashed else "-"}
    match series.drawn:
        case "points":
            look |= {"linestyle": "none"}
        case "curve":
            look |= {"marker": None, "linewidth": 1.1, "zorder": 2}
        case "thin":
            look |= {"linestyle": ":", "linewidth": 0.8, "marker": None}
        case "steps":
            look |= {"linestyle": ":", "linewidth": 0.9, "drawstyle": "steps-post", "zorder": 2}
        case "line":
            look |= {"markevery": max(1, len(y) // _MARKED), "linewidth": 1.1}
    axis.plot(series.x, y, **look)
    if series.label:
        _label(series, axis)


def _bars(series: Series, axis: Axes, colour: str) -> None:
    middle = series.x if series.sideways else series.y
    ends = [
        (0.0, 0.0) if at is None or low is None or high is None else (at - low, high - at)
        for at, low, high in zip(middle, series.low, series.high, strict=True)
    ]
    reach = [[max(down, 0.0) for down, _ in ends], [max(up, 0.0) for _, up in ends]]
    along: dict[str, Any] = {"xerr" if series.sideways else "yerr": reach}
    width = 2.6 if series.heavy else 0.9
    axis.errorbar(
        series.x, [math.nan if value is None else value for value in series.y], fmt="none", ecolor=colour,
        elinewidth=width, capsize=0 if series.sideways else 2, **along,
    )  # fmt: skip


def _label(series: Series, axis: Axes) -> None:
    vertical, horizontal = series.side.split()
    offset = ({"left": -6, "right": 6, "center": 0}[horizontal], {"top": 5, "bottom": -5, "middle": 0}[vertical])
    for x, y in zip(series.x, series.y, strict=True):
        if y is not None:
            axis.annotate(
                series.label, (x, y), xytext=offset, textcoords="offset points", fontsize=7, color=_INK, zorder=4,
                ha={"left": "right", "right": "left", "center": "center"}[horizontal],
                va={"top": "bottom", "bottom": "top", "middle": "center"}[vertical],
            )  # fmt: skip


def _axis(axis: Axis, on: Axes, side: str) -> None:
    from matplotlib.ticker import EngFormatter, NullLocator, PercentFormatter

    this = on.xaxis if side == "x" else on.yaxis
    (on.set_xscale if side == "x" else on.set_yscale)(axis.scale)
    unit = axis.unit if axis.unit in ("bit/byte", "nats/token", "FLOP/s") else ""
    title = axis.title if axis.unit == "bit/byte" or not unit else f"{axis.title} ({unit})"
    this.set_label_text(title)
    if axis.limits is not None:
        (on.set_xlim if side == "x" else on.set_ylim)(*axis.limits)
    elif axis.zero:
        (on.set_xlim if side == "x" else on.set_ylim)(0)
    if axis.ticks:
        lowest, highest = on.get_xlim() if side == "x" else on.get_ylim()
        inside = [index for index, tick in enumerate(axis.ticks) if lowest <= tick <= highest]
        this.set_ticks([axis.ticks[index] for index in inside], labels=[tick_text(axis, index) for index in inside])
        this.set_minor_locator(NullLocator())
        if axis.labels:
            this.set_tick_params(length=0, labelsize=8, labelcolor=_INK)
    elif axis.unit == "relative":
        this.set_major_formatter(PercentFormatter(1.0))
    elif axis.unit in ("s", "FLOP", "FLOP/s", "token", "B"):
        this.set_major_formatter(
            EngFormatter(unit="s" if axis.unit == "s" else "", sep=" " if axis.unit == "s" else "")
        )


def _rule(rule: Rule, axis: Axes) -> None:
    if rule.high is not None:
        axis.axvspan(rule.low, rule.high, color=_SHADE, zorder=0, linewidth=0)
    else:
        axis.axvline(rule.low, color=_MUTED, linewidth=0.8, linestyle="--" if rule.text else "-", zorder=1)
    if rule.text and rule.high is None:
        left, right = axis.get_xlim()
        side = 1 if rule.low - left < 0.4 * (right - left) else -1  # where there is room for the words
        axis.annotate(
            rule.text, (rule.low, 1), xycoords=("data", "axes fraction"), xytext=(3 * side, -3),
            textcoords="offset points", ha="left" if side > 0 else "right", va="top", fontsize=6.5, color=_MUTED,
        )  # fmt: skip
    elif rule.text and rule.high is not None:
        axis.annotate(
            rule.text, ((rule.low + rule.high) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", fontsize=6.5, color=_MUTED,
        )  # fmt: skip


def _heat(heat: HeatMap, axis: Axes) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("heat", list(HEAT))
    values = [[math.nan if value is None else value for value in row] for row in heat.values]
    image = axis.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(heat.columns)), heat.columns)
    axis.set_yticks(range(len(heat.rows)), heat.rows)
    axis.tick_params(length=0, labelcolor=_INK)
    axis.spines[:].set_visible(False)
    for line, row in enumerate(heat.values):
        for column, value in enumerate(row):
            if value is not None:
                axis.text(column, line, f"{value:.2f}", ha="center", va="center", color=ink_on(value), fontsize=7)
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("accuracy")


def _legend(figure: Figure, canvas: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=LIGHT[style.colour], marker=style.shape.matplotlib, markersize=4.5, linewidth=1.4, label=name
        )
        for name, style in figure.legend
    ]
    longest = max(len(name) for name, _ in figure.legend)
    columns = max(1, min(len(handles), 6, 90 // (longest + 6)))  # about 90 letters are as wide as the image
    canvas.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
