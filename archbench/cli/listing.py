"""``archbench list``: every architecture found, and why one is broken."""

from __future__ import annotations

from typing import Any

from archbench.cli.options import Json, Plugins
from archbench.cli.output import print_json
from archbench.presentation.tables import Column, table
from archbench.presentation.terminal import echo

FAMILIES = {
    "attention": ("gemma", "gpt1", "gpt2", "llama", "mistral"),
    "experts": ("mixtral",),
    "recurrent": ("gated-deltanet", "mamba2", "rwkv7"),
    "hybrid": ("hybrid",),
}
"""How the built-in architectures mix tokens, in the order shown. Others do not say, and are :data:`OTHERS`."""

OTHERS = "other plugins"


def list_architectures(plugin: Plugins = None, json: Json = False) -> None:
    """List the architectures found, with summary, paper, package and presets.

    A broken plugin is shown with its error; the exit code is still 0, because the others work.
    """
    from archbench.plugin.description_cache import described

    found = described(plugin or ())
    if json:
        for row in found:
            print_json(row)
    else:
        _print_table(found)


def _print_table(found: list[dict[str, Any]]) -> None:
    from archbench.presentation.terminal import paragraph, show

    order = [*FAMILIES, OTHERS]
    good = sorted(
        ((family(row), row) for row in found if row["error"] is None),
        key=lambda one: (order.index(one[0]), one[1]["name"]),
    )
    if good:
        columns = (
            Column("family", "name"), Column("name", "name"), Column("summary", "text"),
            Column("paper", "name", priority=3), Column("package", "name", priority=2),
            Column("presets", "name", priority=1),
        )  # fmt: skip
        rows = (
            (kind, row["name"], row["summary"], row["paper"], *row["packages"], " ".join(row["presets"]))
            for kind, row in good
        )
        show(table("architectures", "", columns, rows, grouped=1))
        if wrappers := good[0][1]["wrappers"]:
            paragraph(f"\nEach wrapped by: {', '.join(wrappers)}")
    for row in found:
        if row["error"] is not None:
            paragraph(f"\nbroken: {row['error']['message']}", style="red")
    if not found:
        echo("No architectures found. Reinstall archbench: even its built-in plugins are missing.")
    elif good:
        paragraph(f"\nNext: archbench show {good[0][1]['name']}", style="dim")


def family(row: dict[str, Any]) -> str:
    """The family of an architecture; that of a built-in one is known by its name, if the package is archbench."""
    if all(package.rpartition(" ")[0] == "archbench" for package in row["packages"]):
        return next((kind for kind, names in FAMILIES.items() if row["name"] in names), OTHERS)
    return OTHERS
