"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from archbench.errors import UsageError

Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE_OR_DIR", help="Load a plugin by its path (repeatable).")
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON lines.")]


def assignments(texts: list[str] | None, option: str) -> dict[str, str]:
    """``["n_layer=6"]`` as ``{"n_layer": "6"}``.

    Raises:
        UsageError: one is not of the form NAME=VALUE.
    """
    pairs = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(
                f"{option} {text}", "it is not of the form NAME=VALUE", f"Write for instance {option} n_layer=6"
            )
        pairs[name.strip()] = value.strip()
    return pairs
