"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from archbench.errors import ConfigError, UsageError

Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE_OR_DIR", help="Load a plugin by its path (repeatable).")
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON lines.")]


def architectures(names: Sequence[str] | None, plugins: Sequence[str], command: str) -> list[str]:
    """The architectures that are named, where ``all`` names every one there is.

    Raises:
        UsageError: none is named.
    """
    from archbench.plugin.registry import available

    if not names:
        step = f"Name one: archbench {command} gpt1; archbench list shows what there is"
        raise UsageError(f"archbench {command}", "no architecture is named", step)
    if "all" in names:
        return list(dict.fromkeys(entry.name for entry in available(tuple(plugins))))
    return list(names)


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


def assign(values: dict[str, Any], path: str, value: str) -> None:
    """Set ``training.schedule`` and the like; JSON values (null, [1, 2]) are understood, everything else is text.

    Raises:
        ConfigError: a section that has no fields.
    """
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(
                f"--config {path}", f"{section} has no fields", "The sections are data, training, quality and speed"
            )
    try:
        values[name] = json.loads(value)
    except json.JSONDecodeError:
        values[name] = value
