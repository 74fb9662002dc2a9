"""JSON lines on standard output for programs, and what is said on standard error."""

from __future__ import annotations

import json
import os
from typing import Any

import typer


def print_json(value: Any) -> None:
    """One JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def say(kind: str, text: str) -> None:
    """One paragraph on standard error; ``kind`` is Error, Warning or another label."""
    colour = typer.colors.YELLOW if kind == "Warning" else typer.colors.RED
    label = kind if "NO_COLOR" in os.environ else typer.style(kind, fg=colour, bold=True)
    typer.echo(f"{label}: {text}" if text else label, err=True)
