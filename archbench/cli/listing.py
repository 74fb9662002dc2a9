"""``archbench list``: every architecture found, and why one is broken."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from archbench.cli.options import Json, Plugins
from archbench.cli.output import print_json
from archbench.presentation.tables import Column, table
from archbench.presentation.terminal import echo

if TYPE_CHECKING:
    from archbench.plugin.discovery import Entry


def list_architectures(plugin: Plugins = None, json: Json = False) -> None:
    """List the architectures found, with summary, paper, package and presets.

    A broken plugin is shown with its error; the exit code is still 0, because the others work.
    """
    from archbench.errors import ArchbenchWarning
    from archbench.plugin.registry import available

    claims: dict[str, list[Entry]] = {}
    for entry in available(plugin or ()):
        claims.setdefault(entry.name, []).append(entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ArchbenchWarning)  # about broken files, which have their own lines here
        found = [_described(name, entries, plugin or []) for name, entries in claims.items()]
    if json:
        for row in found:
            print_json(row)
    else:
        _print_table(found)


def _described(name: str, entries: list[Entry], plugins: list[str]) -> dict[str, Any]:
    """One architecture as plain values; ``error`` is null unless it is broken."""
    from archbench.errors import ArchbenchError
    from archbench.plugin.registry import load

    row: dict[str, Any] = {
        "name": name,
        "packages": [f"{entry.package} {entry.version}" for entry in entries],
        "sources": [entry.source for entry in entries],
        "summary": None,
        "paper": None,
        "presets": [],
        "wrappers": [],
        "error": None,
    }
    try:
        architecture = load(name, plugins)
    except ArchbenchError as error:
        return {**row, "error": {**error.as_dict(), "message": str(error)}}
    info = architecture.info
    wrappers = list(architecture.wrappers)
    return {**row, "summary": info.summary, "paper": info.paper, "presets": list(info.presets), "wrappers": wrappers}


def _print_table(found: list[dict[str, Any]]) -> None:
    from archbench.presentation.terminal import console, show

    out = console()
    good = [row for row in found if row["error"] is None]
    if good:
        columns = (
            Column("name", "name"), Column("summary", "text"), Column("paper", "text"), Column("package", "name"),
            Column("presets", "text"),
        )  # fmt: skip
        rows = ((row["name"], row["summary"], row["paper"], *row["packages"], " ".join(row["presets"])) for row in good)
        show(table("architectures", "", columns, rows))
        if wrappers := good[0]["wrappers"]:
            out.print(f"\nEach wrapped by: {', '.join(wrappers)}")
    for row in found:
        if row["error"] is not None:
            out.print(f"\nbroken: {row['error']['message']}", style="red", soft_wrap=True)
    if not found:
        echo("No architectures found. Reinstall archbench: even its built-in plugins are missing.")
    elif good:
        out.print(f"\nNext: archbench show {good[0]['name']}", style="dim")
