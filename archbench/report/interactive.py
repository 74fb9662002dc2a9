"""Figures drawn by plotly, as the JSON that the page's script hands to plotly.js.

Colours are CSS variables, which the script replaces by what they are in the page's present scheme, light or dark.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from typing import Any

from archbench.report.figures import Axis, HeatMap, Panel, Rule, Series, tick_text
from archbench.report.numbers import percent, quantity
from archbench.report.styles import HEAT, Style, ink_on

_INK, _MUTED, _GRID = "var(--ink)", "var(--muted)", "var(--grid)"
MARKED = 10
"""About how many points of a long line have a marker, which tells it apart where colours do not."""

_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
_FORMATS = {
    "s": ("~s", "s"),
    "B": ("~s", "B"),
    "FLOP": ("~s", ""),
    "FLOP/s": ("~s", "FLOP/s"),
    "token": ("~s", ""),
    "relative": ("+.2~%", ""),
}
"""d3 formats and suffixes of tick labels, by unit."""


def plotly_js() -> str:
    """The source of plotly.js, as plotly ships it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def spec(panel: Panel) -> dict[str, Any]:
    """``data`` and ``layout`` of one panel; checked by plotly."""
    import plotly.graph_objects as go

    traces: list[Any] = []
    if panel.heat is not None:
        traces = [_heat(panel.heat, go)]
    for series in panel.series:
        traces += _traces(series, panel, go)
    figure = go.Figure(traces, _layout(panel, go))
    figure.layout.template = None
    made: dict[str, Any] = json.loads(figure.to_json())
    made["layout"].pop("template", None)
    return made


def _traces(series: Series, panel: Panel, go: Any) -> list[Any]:
    name = html.escape(series.name, quote=False)
    colour = _INK if series.style is None else series.style.variable
    own = {"name": name, "meta": series.name, "showlegend": False, "legendgroup": name}
    traces = []
    if series.band and series.low:
        traces.append(
            go.Scatter(
                x=[*series.x, *series.x[::-1]], y=[*series.high, *series.low[::-1]], fill="toself", fillcolor=colour,
                opacity=0.16, line={"width": 0}, mode="lines", hoverinfo="skip", **own,
            )
        )  # fmt: skip
    lines = series.drawn != "points"
    points = series.style is not None and series.drawn not in ("curve", "steps", "thin")
    mode = "+".join(
        [*(["lines"] if lines else []), *(["markers"] if points else []), *(["text"] if series.label else [])]
    )
    trace = go.Scatter(x=series.x, y=series.y, mode=mode, **_hover(series, panel), **own)
    if lines:
        dash = "dash" if series.style is not None and series.style.dashed else "solid"
        dash = {"steps": "dot", "thin": "dot"}.get(series.drawn, dash)
        shape = "hv" if series.drawn == "steps" else "linear"
        width = 1.2 if series.drawn in ("steps", "thin") else 2
        trace.update(
            line={"color": _MUTED if series.style is None else colour, "width": width, "dash": dash, "shape": shape}
        )
    if points and series.style is not None:
        trace.update(marker=_marker(series, series.style))
    if series.low and not series.band:
        trace.update({"error_x" if series.sideways else "error_y": _bars(series, colour)})
    if series.label:
        trace.update(
            text=[f"\u2002{html.escape(series.label, quote=False)}\u2002"] * len(series.x), textposition=series.side,
            textfont={"color": _INK, "size": 12}, cliponaxis=False,
        )  # fmt: skip
    return [*traces, trace]


def _marker(series: Series, style: Style) -> dict[str, Any]:
    large = series.heavy and not series.sideways
    size = 13 if large else 9 if series.drawn == "points" and (series.heavy or not series.sideways) else 6
    symbol = style.shape.plotly + ("-open" if series.hollow else "")
    made = {"symbol": symbol, "size": size, "color": style.variable, "line": {"color": style.variable, "width": 1.6}}
    return made | ({"maxdisplayed": MARKED} if series.drawn == "line" else {})


def _bars(series: Series, colour: str) -> dict[str, Any]:
    middle = series.x if series.sideways else series.y
    ends = zip(middle, series.low, series.high, strict=True)
    reach = [
        (0.0, 0.0) if at is None or low is None or high is None else (high - at, at - low) for at, low, high in ends
    ]
    return {
        "type": "data", "symmetric": False, "array": [up for up, _ in reach], "arrayminus": [down for _, down in reach],
        "color": colour, "thickness": 4 if series.heavy else 1.4, "width": 0 if series.heavy or series.sideways else 3,
    }  # fmt: skip


def _hover(series: Series, panel: Panel) -> dict[str, Any]:
    """What is said of a point that is pointed at: a template, and for each point what it leaves open."""
    role = f" · {html.escape(series.role)}" if series.role else ""
    lines = [f"<b>{html.escape(series.name, quote=False)}</b>{role}"]
    points: list[list[str]] = [[] for _ in series.x]

    def line(title: str, texts: Sequence[str]) -> None:
        lines.append(f"{html.escape(title, quote=False)}%{{customdata[{len(points[0])}]}}")
        for point, text in zip(points, texts, strict=True):
            point.append(html.escape(text, quote=False))

    line(f"{panel.x.title}: ", [_value(x, panel.x) for x in series.x])
    if not panel.y.labels:
        line(f"{panel.y.title}: ", [_value(y, panel.y) for y in series.y])
    if series.low and not series.sideways:
        ends = zip(series.low, series.high, strict=True)
        line("", [f"{_value(low, panel.y)} to {_value(high, panel.y)}" for low, high in ends])
    if series.notes:
        line("", series.notes)
    return {"hovertemplate": "<br>".join(lines) + "<extra></extra>", "customdata": points}


def _value(value: float | None, axis: Axis) -> str:
    return percent(value) if axis.unit == "relative" else quantity(value, axis.unit)


def _heat(heat: HeatMap, go: Any) -> Any:
    names = [[html.escape(name, quote=False) for name in side] for side in (heat.columns, heat.rows)]
    return go.Heatmap(
        x=names[0], y=names[1], z=heat.values, zmin=0, zmax=1, colorscale=[list(step) for step in HEAT],
        hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>", xgap=2, ygap=2, hoverongaps=False,
        colorbar={"title": {"text": "accuracy"}, "thickness": 10, "outlinewidth": 0, "len": 0.9},
    )  # fmt: skip


def _layout(panel: Panel, go: Any) -> Any:
    heat = panel.heat is not None
    top = 22 if any(rule.text and rule.high is not None for rule in panel.rules) else 8
    layout: dict[str, Any] = {
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": False, "hovermode": "closest",
        "font": {"color": _INK, "size": 12, "family": _FONT},
        "margin": {"l": 4, "r": 14, "t": top, "b": 4, "pad": 2}, "autosize": True,
        "hoverlabel": {
            "bgcolor": "var(--paper)", "bordercolor": "var(--rule)", "align": "left",
            "font": {"color": _INK, "size": 12},
        },
        "xaxis": _axis(panel.x, grid=not heat), "yaxis": _axis(panel.y, grid=not heat and not panel.y.labels),
    }  # fmt: skip
    if heat:
        layout["xaxis"] |= {"type": "category", "title": None, "showline": False}
        layout["yaxis"] |= {"type": "category", "autorange": "reversed", "title": None}
    drawn = [_rule(rule, panel) for rule in panel.rules]
    layout["shapes"] = [shape for shape, _ in drawn]
    layout["annotations"] = [text for _, text in drawn if text is not None]
    if panel.heat is not None:
        layout["annotations"] = [
            {
                "x": column,
                "y": row,
                "text": f"{value:.2f}",
                "showarrow": False,
                "font": {"color": ink_on(value), "size": 12},
            }
            for row, values in enumerate(panel.heat.values)
            for column, value in enumerate(values)
            if value is not None
        ]
    return go.Layout(layout)


def _axis(axis: Axis, *, grid: bool) -> dict[str, Any]:
    unit = {"bit/byte": "", "1": "", "token": "", "parameter": "", "relative": "", "FLOP": ""}.get(axis.unit, axis.unit)
    made: dict[str, Any] = {
        "automargin": True, "showgrid": grid, "gridcolor": _GRID, "zeroline": False, "linecolor": "var(--rule)",
        "tickcolor": "var(--rule)", "ticks": "outside" if not axis.labels else "", "ticklen": 4, "showline": grid,
        "tickfont": {"color": _MUTED, "size": 11}, "type": axis.scale, "nticks": 7, "exponentformat": "SI",
        "title": {"text": axis.title + (f" ({unit})" if unit and unit not in ("s", "B") else ""),
                  "font": {"size": 12, "color": _MUTED}, "standoff": 8},
    }  # fmt: skip
    if axis.unit in _FORMATS:
        made["tickformat"], suffix = _FORMATS[axis.unit]
        made["ticksuffix"] = suffix if suffix in ("s", "B") else ""
    if axis.zero:
        made["rangemode"] = "tozero"
    if axis.limits is not None:
        made["range"] = [math.log10(end) if axis.scale == "log" else end for end in axis.limits]
    if axis.ticks:
        labels = [html.escape(tick_text(axis, index), quote=False) for index in range(len(axis.ticks))]
        made |= {"tickvals": list(axis.ticks), "ticktext": labels}
    if axis.labels:
        made |= {"title": None, "tickfont": {"color": _INK, "size": 13}}
    return made


def _rule(rule: Rule, panel: Panel) -> tuple[dict[str, Any], dict[str, Any] | None]:
    shape: dict[str, Any]
    if rule.high is not None:
        shape = {
            "type": "rect", "x0": rule.low, "x1": rule.high, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
            "fillcolor": "var(--shade)", "line": {"width": 0},
        }  # fmt: skip
    else:
        dash = "dash" if rule.text else "solid"
        shape = {
            "type": "line", "x0": rule.low, "x1": rule.low, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
            "line": {"color": _MUTED, "width": 1, "dash": dash},
        }  # fmt: skip
    if not rule.text:
        return shape, None
    at = rule.low if rule.high is None else (rule.low + rule.high) / 2
    text = {
        "x": math.log10(at) if panel.x.scale == "log" else at, "y": 1, "yref": "paper", "showarrow": False,
        "text": rule.text, "font": {"size": 11, "color": _MUTED},
        "xanchor": _side(rule, panel) if rule.high is None else "center",
        "yanchor": "top" if rule.high is None else "bottom",
    }  # fmt: skip
    return shape, text


def _side(rule: Rule, panel: Panel) -> str:
    """On which side of the words their line is: they stand where there is room."""
    xs = [x for series in panel.series for x in series.x if isinstance(x, int | float)]
    low, high = (min(xs), max(xs)) if xs else (rule.low, rule.low)
    return "left" if rule.low - low < 0.4 * (high - low) else "right"
