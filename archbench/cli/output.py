"""JSON lines on standard output for programs, and what is said on standard error."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import typer

from archbench.presentation.characters import json_escaped, visible
from archbench.presentation.terminal import error_width, wrapped


def print_json(value: Any) -> None:
    """One JSON object on one line, for the strictest reader: null for numbers that are not finite."""
    print(json_escaped(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def say(kind: str, text: str) -> None:
    """One paragraph on standard error, wrapped between words there; ``kind`` is Error, Warning or another label."""
    colour = typer.colors.YELLOW if kind == "Warning" else typer.colors.RED
    label = kind if "NO_COLOR" in os.environ else typer.style(kind, fg=colour, bold=True)
    said = f"{kind}: {visible(text, lines=False)}" if text else kind
    width = error_width()
    lines = [said] if width is None else wrapped(said, width)
    typer.echo(label + "\n".join(lines).removeprefix(kind), err=True)
