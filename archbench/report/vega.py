"""Figures as Vega-Lite. The page's script and vl-convert (PNG, SVG, PDF) draw the same specification.

Colours are CSS variables, so charts on the page follow light and dark; images are light.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import fmean
from textwrap import wrap
from typing import Any

from archbench.presentation.quantities import counted, quantity
from archbench.report.figures import Axis, Figure, HeatMap, Panel, Rule, Series, tick_text
from archbench.report.styles import HEAT, LIGHT, Style, ink_on

DOTS_AN_INCH = 300
MARKED = 10
"""About how many points of a long line have a marker, which identifies it without colours."""

_INK, _MUTED, _GRID, _RULE, _SHADE = "var(--ink)", "var(--muted)", "var(--grid)", "var(--rule)", "var(--shade)"
_PAPER = {"ink": "#1a1d21", "muted": "#5a626c", "grid": "#e6e9ed", "rule": "#5a626c", "shade": "#eceef1"}
_CONFIG = {
    "background": None,
    "font": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domainColor": _RULE, "tickColor": _RULE, "gridColor": _GRID, "labelColor": _MUTED, "titleColor": _MUTED,
        "labelFontSize": 11, "labelSeparation": 5, "titleFontSize": 12, "titleFontWeight": "normal", "tickCount": 6,
    },
    "legend": {
        "orient": "top", "title": None, "labelColor": _INK, "labelFontSize": 12, "labelLimit": 0, "symbolOpacity": 1,
    },
    "title": {"color": _INK, "anchor": "start", "fontSize": 12, "fontWeight": "normal"},
}  # fmt: skip
_SI = {"s": "s", "B": "B", "FLOP": "", "FLOP/s": "", "token": ""}
"""Units of axes with SI prefixes -> the text after the prefix."""


@cache
def script() -> str:
    """The JavaScript that draws a specification: Vega, Vega-Lite and Vega-Embed, about 0.9 MB."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def chart(panel: Panel, *, height: int) -> dict[str, Any]:
    """One panel for the page: as wide as its container, with hover texts, zoom, and a parameter ``hidden`` of names."""
    made = _panel(panel, {}) | {
        "width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}, "config": _CONFIG,
    }  # fmt: skip
    if panel.heat is not None:
        return made
    select = {
        "type": "interval",
        "encodings": ["x"] if panel.y.labels else ["x", "y"],
        "zoom": "wheel![event.shiftKey]",
    }
    made["layer"][-1]["params"] = [{"name": "zoom", "bind": "scales", "select": select}]
    made["params"] = [{"name": "hidden", "value": []}]
    made["transform"] = [{"filter": "indexof(hidden, datum.name) < 0"}]
    return made


def height_of(figure: Figure, panel: Panel) -> int:
    """Pixels of one plot on the page."""
    alone = len(figure.panels) == 1 or figure.arrangement == "switch"
    return _height_by_lines(panel) or (400 if alone else 290)


def image(figure: Figure, form: str = "png", *, heading: str = "") -> bytes:
    """The figure with its panels side by side and a legend, light, about 7 inches wide; PNG with 300 dpi.

    Args:
        form: png, svg or pdf.
        heading: stands above the panels; by default, the figure's title.
    """
    import vl_convert

    columns = min(len(figure.panels), 3 if len(figure.panels) == 3 else 2)
    width, height = 640 // columns - 70 * (columns > 1), 300 if columns == 1 else 190
    panels = []
    for panel in figure.panels:
        made = _panel(panel, dict(figure.legend)) | {"width": width, "height": _height_by_lines(panel) or height}
        if len(figure.panels) > 1 and panel.title not in (panel.x.title, panel.y.title):
            made["title"] = panel.title
        panels.append(made)
    spec: dict[str, Any] = {"concat": panels, "columns": columns, "config": _CONFIG | {"background": "white"}}
    under = {"subtitle": wrap(" ".join(figure.basis), 105), "subtitleColor": _MUTED, "subtitlePadding": 4}
    spec["title"] = {"text": heading or figure.title, **under, "offset": 12}
    text = re.sub(r"var\(--series-(\d+)\)", lambda found: LIGHT[int(found[1])], json.dumps(spec, default=float))
    text = re.sub(r"var\(--(\w+)\)", lambda found: _PAPER[found[1]], text)
    if form == "svg":
        return str(vl_convert.vegalite_to_svg(text)).encode()
    if form == "pdf":
        return bytes(vl_convert.vegalite_to_pdf(text))
    return bytes(vl_convert.vegalite_to_png(text, scale=0.72, ppi=DOTS_AN_INCH))


def _height_by_lines(panel: Panel) -> int | None:
    """Pixels of a panel that has a line for each name; None for others."""
    if panel.heat is not None:
        return 34 * len(panel.heat.rows)
    return 20 + 56 * len(panel.y.labels) if panel.y.labels else None


def _panel(panel: Panel, legend: dict[str, Style]) -> dict[str, Any]:
    """Data and layers of a panel, with a legend of the given names."""
    if panel.heat is not None:
        return _heat(panel.heat)
    rows = [row for number, series in enumerate(panel.series) for row in _rows(series, number, panel)]
    styles: dict[str, Style | None] = {**legend, **{series.name: series.style for series in panel.series}}
    columns = max(1, min(6, 90 // (max(map(len, legend), default=1) + 6)))  # an image is about 90 letters wide
    shown = {"values": list(legend), "columns": columns} if legend else None

    def by_name(look: Callable[[Style | None], Any]) -> dict[str, Any]:
        scale = {"domain": list(styles), "range": [look(style) for style in styles.values()]}
        return {"field": "name", "type": "nominal", "scale": scale, "legend": shown}

    colour = by_name(lambda style: _MUTED if style is None else style.variable)
    dash = by_name(lambda style: [6, 4] if style is not None and style.dashed else [1, 0])
    shape = by_name(lambda style: "circle" if style is None else style.path)
    ends = [(row[end], row) for row in rows for end in ("low", "high") if row.get(end) is not None]
    across = {row["x"] for row in rows} | {end for end, row in ends if "sideways" in row}
    up = {row["y"] for row in rows} - {None} | {end for end, row in ends if "sideways" not in row}
    x = _axis(panel.x, across, grid=True) | {"field": "x"}
    y = _axis(panel.y, up, grid=not panel.y.labels) | {"field": "y"}
    clip = panel.x.limits is not None or panel.y.limits is not None
    layers = [layer for rule in panel.rules for layer in _rule(rule, panel)]

    def add(which: str, mark: dict[str, Any], **encoding: Any) -> None:
        """A layer of the rows that have the field ``which``."""
        if any(which in row for row in rows):
            encoding = {"x": x, "y": y, "color": colour} | encoding
            chosen = [{"filter": f"isValid(datum.{which})"}]
            layers.append({"transform": chosen, "mark": {"clip": clip} | mark, "encoding": encoding})

    along, low, high = {"field": "line"}, {"field": "low"}, {"field": "high"}
    width = {"condition": {"test": "datum.heavy", "value": 4}, "value": 1.4}
    dotted = {"type": "line", "strokeWidth": 1.2, "strokeDash": [2, 3]}
    add("band", {"type": "area", "opacity": 0.16}, y=y | low, y2=high, detail=along)
    add("upright", {"type": "rule"}, y=y | low, y2=high, strokeWidth=width)
    add("sideways", {"type": "rule"}, x=x | low, x2=high, strokeWidth=width)
    add("steps", dotted | {"interpolate": "step-after"}, detail=along)
    add("thin", dotted, detail=along)
    add("drawn", {"type": "line", "strokeWidth": 1.8}, strokeDash=dash, detail=along)
    text = {"type": "text", "fontSize": 11, "clip": False}
    text |= {name: {"expr": f"datum.{name}"} for name in ("align", "baseline", "dx", "dy")}
    add("label", text, text={"field": "label"}, color={"value": _INK})
    size = {"test": "datum.size", "field": "size", "type": "quantitative", "scale": None}
    points = {
        "shape": shape,
        "stroke": colour,
        "fill": colour | {"condition": {"test": "datum.hollow", "value": "transparent"}},
        "size": {"condition": size, "value": 36},
        "opacity": {"condition": {"test": "datum.marked", "value": 1}, "value": 0},
    }
    mark = {"type": "point", "strokeWidth": 1.4, "clip": clip, "tooltip": {"expr": "datum.tip"}}
    layers.append({"mark": mark, "encoding": {"x": x, "y": y} | points})
    return {"data": {"values": rows}, "layer": layers}


def _rows(series: Series, number: int, panel: Panel) -> list[dict[str, Any]]:
    """The points of a series with the fields that the layers select by; fields that do not apply are left out."""
    bars = bool(series.low) and not series.band
    marked = series.style is not None and series.drawn not in ("curve", "steps", "thin")
    every = max(1, len(series.x) // MARKED) if series.drawn == "line" else 1
    flags = {
        "heavy": series.heavy, "hollow": series.hollow, "band": series.band and bool(series.low),
        "upright": bars and not series.sideways, "sideways": bars and series.sideways,
        "steps": series.drawn == "steps", "thin": series.drawn == "thin",
        "drawn": series.drawn in ("line", "curve", "line+points"),
    }  # fmt: skip
    common: dict[str, Any] = {"name": series.name, "line": number}
    common |= {name: True for name, holds in flags.items() if holds}
    if series.drawn == "points" and (series.heavy or not series.sideways):
        common["size"] = 170 if series.heavy and not series.sideways else 80
    if series.label:
        vertical, horizontal = series.side.split()
        common |= {
            "label": series.label,
            "align": {"left": "right", "right": "left", "center": "center"}[horizontal],
            "baseline": {"top": "bottom", "bottom": "top", "middle": "middle"}[vertical],
            "dx": {"left": -9, "right": 9, "center": 0}[horizontal],
            "dy": {"top": -6, "bottom": 6, "middle": 0}[vertical],
        }
    rows = []
    for index, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
        ends = {"low": series.low[index], "high": series.high[index]} if series.low else {}
        own = {"marked": True} if marked and index % every == 0 else {}
        rows.append(common | {"x": x, "y": y} | ends | own | {"tip": _tip(series, index, panel)})
    return rows


def _tip(series: Series, index: int, panel: Panel) -> dict[str, str]:
    """The hover text of a point."""
    tip = {"title": f"{series.name} · {series.role}" if series.role else series.name}
    tip[panel.x.title] = quantity(series.x[index], panel.x.unit)
    if not panel.y.labels:
        tip[panel.y.title] = quantity(series.y[index], panel.y.unit)
    if series.low and not series.sideways:
        tip["range"] = f"{quantity(series.low[index], panel.y.unit)} to {quantity(series.high[index], panel.y.unit)}"
    return tip | ({"": series.notes[index]} if series.notes else {})


def _axis(axis: Axis, shown: set[float], *, grid: bool) -> dict[str, Any]:
    """The axis of the values ``shown``; where they are all the same, it has one label, of that value."""
    if len(shown) == 1 and not axis.labels and axis.limits is None and (shown == {0.0} or not axis.zero):
        axis = replace(axis, ticks=tuple(shown))
    title = f"{axis.title} ({axis.unit})" if axis.unit in ("nats/token", "FLOP/s") else axis.title
    made: dict[str, Any] = {"grid": grid, "labelOverlap": not axis.labels, "title": title}
    if axis.ticks:
        labels = json.dumps([tick_text(axis, index) for index in range(len(axis.ticks))])
        made |= {
            "values": list(axis.ticks),
            "tickCount": len(axis.ticks),  # fewer would drop every other value
            "labelExpr": f"{labels}[indexof({json.dumps(axis.ticks)}, datum.value)]",
        }
    elif axis.unit == "relative":
        made["format"] = "+.2~%"
    elif axis.unit in _SI:
        made["labelExpr"] = f"format(datum.value, '~s') + '{_SI[axis.unit]}'"
    if axis.unit == "date":
        made["labelFlush"] = 14  # a date at the end stays inside the plot
    if axis.labels:
        made |= {"title": None, "labelColor": _INK, "labelFontSize": 13, "labelLimit": 140}
        made |= {"ticks": False, "domain": False}
    scale: dict[str, Any] = {"type": axis.scale}
    if axis.scale == "linear":
        scale["zero"] = axis.zero
    if axis.limits is not None:
        scale |= {"domain": list(axis.limits), "nice": False}
    elif not axis.zero:
        scale |= {"padding": 12, "nice": axis.scale == "linear"}
    return {"type": "quantitative", "axis": made, "scale": scale}


def _rule(rule: Rule, panel: Panel) -> list[dict[str, Any]]:
    """A line or a shaded range, and its label where there is room."""
    x = {"field": "low", "type": "quantitative"}
    data = {"values": [{"low": rule.low, "high": rule.high}]}
    mark: dict[str, Any]
    encoding: dict[str, Any]
    place: dict[str, Any]
    if rule.high is not None:
        at, mark, encoding = (rule.low + rule.high) / 2, {"type": "rect", "color": _SHADE}, {"x2": {"field": "high"}}
        place = {"align": "center", "baseline": "bottom", "dy": -3}
    else:
        xs = [at for series in panel.series for at in series.x] or [rule.low]
        left = rule.low - min(xs) < 0.4 * (max(xs) - min(xs))
        at, mark, encoding = rule.low, {"type": "rule", "color": _MUTED}, {}
        mark |= {"strokeDash": [4, 3]} if rule.text else {}
        place = {"align": "left" if left else "right", "baseline": "top", "dx": 4 if left else -4, "dy": 2}
    layers: list[dict[str, Any]] = [{"data": data, "mark": mark, "encoding": {"x": x} | encoding}]
    if rule.text:
        words = {"type": "text", "fontSize": 11, "color": _MUTED} | place
        encoding = {"x": x, "y": {"value": 0}, "text": {"value": rule.text}}
        layers.append({"data": {"values": [{"low": at}]}, "mark": words, "encoding": encoding})
    return layers


def _heat(heat: HeatMap) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for row, values, chance in zip(heat.rows, heat.values, heat.chance, strict=True):
        for column, seeds in zip(heat.columns, values, strict=True):
            if seeds:
                value = fmean(seeds)
                share = max(0.0, (value - chance) / (1 - chance))
                hover = {
                    "title": f"{row}, {column}", "accuracy": f"{value:.3f}", "chance": f"{chance:.3f}",
                    "range": f"{min(seeds):.3f} to {max(seeds):.3f}, {counted(len(seeds), 'seed')}",
                }  # fmt: skip
                drawn = {"value": share, "text": f"{value:.2f}", "ink": ink_on(share), "tip": hover}
                rows.append({"row": row, "column": column, **drawn})
    chances = dict(zip(heat.rows, (f"chance {chance:.2g}" for chance in heat.chance), strict=True))
    axis: dict[str, Any] = {
        "title": None, "labelColor": _INK, "labelLimit": 160, "ticks": False, "domain": False, "labelOverlap": False,
    }  # fmt: skip
    across = axis | {"labelAngle": -35 if len(heat.columns) > 3 else 0}
    down = axis | {"labelExpr": f"[datum.label, {json.dumps(chances)}[datum.label]]", "labelLineHeight": 12}
    steps, shades = zip(*HEAT, strict=True)
    colour = {
        "field": "value",
        "type": "quantitative",
        "scale": {"domain": steps, "range": shades},
        "legend": {
            "title": "from chance to all right",
            "orient": "top",
            "direction": "horizontal",
            "titleColor": _MUTED,
            "format": ".0%",
            "values": [0, 0.5, 1],
            "gradientLength": 120,
        },
    }
    tip = {"tooltip": {"expr": "datum.tip"}}
    number = {"type": "text", "color": {"expr": "datum.ink"}} | tip
    return {
        "data": {"values": rows},
        "encoding": {
            "x": {"field": "column", "type": "nominal", "sort": heat.columns, "axis": across},
            "y": {"field": "row", "type": "nominal", "sort": heat.rows, "axis": down},
        },
        "layer": [
            {"mark": {"type": "rect"} | tip, "encoding": {"color": colour}},
            {"mark": number, "encoding": {"text": {"field": "text"}}},
        ],
    }
