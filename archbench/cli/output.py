"""Standard output: tables for people, JSON lines for programs; and what is said on standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where no terminal says how many there are."""


def console() -> Console:
    """Where tables go: as wide as the terminal, and never wrapped to 80 columns only because there is none."""
    from rich.console import Console

    fixed = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(width=fixed, highlight=False, markup=False, emoji=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An unframed table; ``right`` names the columns that are numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        number = column in right
        made.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return made


def print_json(value: Any) -> None:
    """One JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def say(kind: str, text: str) -> None:
    """One paragraph on standard error; ``kind`` is Error, Warning or another label."""
    colour = typer.colors.YELLOW if kind == "Warning" else typer.colors.RED
    label = kind if "NO_COLOR" in os.environ else typer.style(kind, fg=colour, bold=True)
    typer.echo(f"{label}: {text}" if text else label, err=True)
