"""The page: one HTML file with all that it needs in it, from templates and data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from archbench import __version__
from archbench.report.contents import NO_VERDICT, Contents
from archbench.report.figures import Figure, Panel, data_of
from archbench.report.interactive import plotly_js, spec
from archbench.report.styles import DARK, LIGHT


def page(contents: Sequence[Contents], *, title: str) -> str:
    """The whole page.

    Everything that comes from data is escaped: by the template engine in HTML, and in the embedded JSON by writing
    ``<``, ``>`` and ``&`` as escapes, so that no text in it can end the script element it stands in.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded
    figures = {
        f"{number}-{figure.key}": _embedded(figure) for number, part in enumerate(contents) for figure in part.figures
    }
    return environment.get_template("page.html.j2").render(
        title=title,
        parts=contents,
        no_verdict=NO_VERDICT,
        version=__version__,
        height=_height,
        figures=figures,
        light=LIGHT,
        dark=DARK,
        css=_template("page.css"),
        script=_template("page.js"),
        plotly=plotly_js(),
    )


def embedded(value: Any) -> str:
    """``value`` as JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _embedded(figure: Figure) -> dict[str, Any]:
    columns, rows = data_of(figure)
    return {"panels": [spec(panel) for panel in figure.panels], "columns": columns, "rows": rows}


def _height(figure: Figure, panel: Panel) -> int:
    """Pixels of one plot on the page."""
    if panel.heat is not None:
        return 70 + 38 * len(panel.heat.rows)
    if panel.y.labels:
        return 80 + 56 * len(panel.y.labels)
    return 440 if len(figure.panels) == 1 or figure.arrangement == "switch" else 330


def _template(name: str) -> str:
    return (resources.files("archbench.report") / "templates" / name).read_text(encoding="utf-8")
