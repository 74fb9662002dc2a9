"""``archbench where``: where results, caches, settings and plugins are, and how large they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from archbench.cli.options import Json, Plugins
from archbench.cli.output import print_json
from archbench.presentation.quantities import counted
from archbench.presentation.tables import Column, table
from archbench.presentation.terminal import echo, show

Place = dict[str, Any]
"""``what``, ``path``, ``exists``, ``bytes`` (None for a plugin), ``note``."""


def where(
    results: Annotated[str, typer.Argument(help="A folder of results")] = "results",
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Show where everything is: results, caches, trusted plugins, the plugins found, and the settings that decide it.

    Nothing is imported to know that, so a broken plugin is listed as any other.
    """
    found = [*_folders(Path(results)), *_plugins(plugin or [])]
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith("ARCHBENCH_")}
    if json:
        for one in found:
            print_json(one)
        for name, value in settings.items():
            print_json({"what": "setting", "name": name, "value": value})
        return
    columns = (
        Column("what", "name"),
        Column("size", unit="B"),
        Column("note", "text", priority=1),
        Column("where", "path"),
    )
    rows = ((one["what"], one["bytes"], one["note"], one["path"]) for one in found)
    show(table("places", "", columns, rows))
    for name, value in settings.items():
        echo(f"{name}={value}")


def _folders(results: Path) -> Iterator[Place]:
    from archbench.data.cache import cache_folder
    from archbench.plugin.trust import config_folder, trusted
    from archbench.results.leftovers import CACHES
    from archbench.results.run_files import all_runs

    runs = sum(1 for _ in all_runs(results))
    yield _place("results", results, counted(runs, "run"))
    for name in CACHES:
        yield _place(f"cache: {name}", cache_folder() / name)
    store = config_folder() / "trusted.json"
    yield _place("trusted plugins", store, counted(len(trusted()), "content"))


def _plugins(named: list[str]) -> Iterator[Place]:
    from archbench.hookspecs import GROUP, TASK_GROUP, TRACKER_GROUP
    from archbench.plugin.discovery import installed, packages, plugin_files, plugin_paths, source_path

    here = packages()
    for group, kind in ((GROUP, "architecture"), (TASK_GROUP, "task"), (TRACKER_GROUP, "tracker")):
        for entry in installed(group, here):
            source = source_path(entry)
            missing = "" if source is not None else f" (there is no module {entry.source})"
            path = source or Path(entry.source)
            yield _place(f"{kind} {entry.name}", path, f"{entry.package} {entry.version}{missing}", sized=False)
    for place in plugin_paths(named):
        for file in plugin_files(place):
            yield _place("plugin file", Path(file), "named by --plugin or ARCHBENCH_PLUGINS")


def _place(what: str, path: Path, note: str = "", *, sized: bool = True) -> Place:
    from archbench.results.leftovers import size_on_disk

    size = size_on_disk([path])[0] if sized and path.exists() else None
    note = note if path.exists() else note or "not there"
    return {"what": what, "path": os.path.abspath(path), "exists": path.exists(), "bytes": size, "note": note}
