"""``archbench list``: every architecture found, and why one is broken."""

from __future__ import annotations

from typing import Any

from archbench.cli.options import Json, Plugins
from archbench.cli.output import print_json
from archbench.presentation.tables import Column, table
from archbench.presentation.terminal import echo


def list_architectures(plugin: Plugins = None, json: Json = False) -> None:
    """List the architectures found, with summary, paper, package and presets.

    A broken plugin is shown with its error; the exit code is still 0, because the others work.
    """
    from archbench.plugin.catalogue import described

    found = described(plugin or ())
    if json:
        for row in found:
            print_json(row)
    else:
        _print_table(found)


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
