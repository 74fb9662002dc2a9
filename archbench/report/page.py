"""The page: one self-contained HTML file, from templates and data."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from archbench import __version__
from archbench.presentation.characters import visible
from archbench.report.contents import Contents
from archbench.report.figures import Figure, data_of
from archbench.report.styles import DARK, LIGHT
from archbench.report.vega import chart, height_of, script


def page(contents: Sequence[Contents], *, title: str) -> str:
    """The whole page.

    All data are escaped in HTML by the template engine. The library that draws and the figures are packed, a third as
    large; the page unpacks each figure when it comes into view.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    figures = {
        f"{number}-{figure.key}": _packed(_json(_embedded(figure)))
        for number, part in enumerate(contents)
        for figure in part.figures
    }
    style, scripts = _style(), (_template("page.js"),)
    return environment.get_template("page.html.j2").render(
        title=title,
        parts=contents,
        version=__version__,
        height=height_of,
        packed={"library": _packed(script()), "figures": figures} if figures else {},
        policy=_policy(style, (*scripts, script()) if figures else scripts),
        style=style,
        scripts=scripts,
    )


def _style() -> str:
    light, dark = (
        " ".join(f"--series-{number}: {colour};" for number, colour in enumerate(colours)) for colours in (LIGHT, DARK)
    )
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root:not(.light) {{ {dark} }} }}"
    return f":root {{ {light} }}\n{dark}\n{_template('page.css')}"


def _policy(style: str, scripts: Sequence[str]) -> str:
    """What the page allows itself: its own scripts and style, named by their digests, and images that they make."""

    def digests(*texts: str) -> str:
        found = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in found)

    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; script-src {digests(*scripts)}; "
        f"style-src {digests(style)}; img-src data: blob:"
    )


def _json(value: Any) -> str:
    """``value`` as JSON. NumPy's numbers become floats."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=float)


def _packed(text: str) -> str:
    """``text`` for DecompressionStream: gzip, in letters that can end no element."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _embedded(figure: Figure) -> dict[str, Any]:
    columns, rows = data_of(figure)
    panels = [chart(panel, height=height_of(figure, panel)) for panel in figure.panels]
    made: dict[str, Any] = _visible({"panels": panels, "columns": columns, "rows": rows})
    return made


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {_visible(name): _visible(one) for name, one in value.items()}
    return [_visible(one) for one in value] if isinstance(value, list | tuple) else value


def _template(name: str) -> str:
    return (resources.files("archbench.report") / "templates" / name).read_text(encoding="utf-8")
