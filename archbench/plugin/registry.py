"""Which architectures there are, and how to get one.

Installed plugins are found without importing them. Each architecture has a plugin manager of its own, so exactly one
plugin answers for it, and a broken one breaks no other: its error is raised when that architecture is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from archbench.errors import (
    ArchbenchWarning,
    DuplicateNameError,
    PluginError,
    PluginImportError,
    UnknownNameError,
    did_you_mean,
)
from archbench.hookspecs import REQUIRED_HOOKS
from archbench.plugin.architecture import Architecture
from archbench.plugin.contract import check_hooks, hooks_of, is_wrapper
from archbench.plugin.discovery import Entry, file_entry, installed, is_same_plugin, plugin_files, plugin_paths
from archbench.plugin.importing import import_file, import_installed

__all__ = ["Architecture", "Entry", "available", "load", "plugin_paths"]


def available(plugins: Iterable[str | Path] = ()) -> list[Entry]:
    """Every claim to an architecture's name: installed packages, ``plugins`` and ``ARCHBENCH_PLUGINS``, by name.

    No installed plugin is imported. Files named in ``plugins`` are loaded, since only they know their names; one that
    is broken is listed under its path, and :func:`load` of that path raises its error. A name claimed twice is listed
    twice; a file that is what an installed package has under that name, or a copy of it, is no second claim.

    Raises:
        UsageError: a file or folder in ``plugins`` does not exist, or has no plugin.
    """
    entries = installed()
    files = [file.entry for file in _files(plugins) if file.kind == "architecture"]
    files = [file for file in files if not any(is_same_plugin(entry, file) for entry in entries)]
    return sorted(entries + files, key=lambda entry: (entry.name, entry.package))


def load(name: str, plugins: Iterable[str | Path] = ()) -> Architecture:
    """Import and check the one plugin that claims ``name``.

    Cross-cutting plugins among ``plugins`` (files whose hooks are all wrappers) are put around its hooks.

    Warns:
        ArchbenchWarning: one of ``plugins`` cannot be imported, so it may have been meant for this architecture.

    Raises:
        UnknownNameError: nothing claims that name.
        DuplicateNameError: two plugins do.
        PluginError: the plugin cannot be imported, or breaks the contract; its subclasses say how.
        UsageError: a file or folder in ``plugins`` does not exist, or has no plugin.
    """
    files = _files(plugins)
    claims = [entry for entry in installed() if entry.name == name]
    claimed = [file.entry for file in files if file.entry.name == name and file.kind == "architecture"]
    claims += [file for file in claimed if not any(is_same_plugin(entry, file) for entry in claims)]
    if len(claims) > 1:
        claimants = " and ".join(
            f"{claim.package} ({claim.source})" if not claim.is_file else claim.package for claim in claims
        )
        step = (
            "Uninstall one of the packages"
            if not any(claim.is_file for claim in claims)
            else "Rename one, or leave the file out, or bring an outdated package up to date with pip install -e"
        )
        raise DuplicateNameError(f"architecture {name!r}", f"{len(claims)} plugins claim that name: {claimants}", step)
    if not claims:
        raise _unknown(name, files)
    entry = claims[0]
    file = next((file for file in files if file.entry == entry), None)
    if file is not None and file.error is not None:
        raise file.error
    if file is not None:
        plugin = file.plugin
    else:
        plugin = import_installed(entry)
        check_hooks(plugin, entry.culprit)
    return Architecture(entry, plugin, _wrappers(files))


def _wrappers(files: list[_File]) -> dict[str, object]:
    """The cross-cutting plugins among ``files``, by name; one that is broken is never left out silently."""
    for file in files:
        if file.kind == "wrapper" and file.error is not None:
            raise file.error
        if isinstance(file.error, PluginImportError):
            warnings.warn(f"left out {file.error}", ArchbenchWarning, stacklevel=3)
    return {Path(file.entry.source).stem: file.plugin for file in files if file.kind == "wrapper"}


Kind = Literal["architecture", "wrapper", "tasks"]


@dataclass(frozen=True)
class _File:
    """A plugin loaded by path; ``error`` says why it cannot be used."""

    entry: Entry
    plugin: object = None
    kind: Kind = "architecture"
    error: PluginError | None = None


def _files(plugins: Iterable[str | Path]) -> list[_File]:
    return [_load_file(path) for place in plugin_paths(plugins) for path in plugin_files(place)]


def _load_file(path: str) -> _File:
    entry = file_entry(path)
    kind: Kind = "architecture"
    try:
        plugin = import_file(path)
        kind = "wrapper" if is_wrapper(plugin) else "tasks" if hooks_of(plugin) == {"tasks"} else "architecture"
        check_hooks(plugin, entry.culprit, required=REQUIRED_HOOKS if kind == "architecture" else ())
        if kind == "architecture":
            entry = file_entry(path, name=Architecture(entry, plugin).name)
        return _File(entry, plugin, kind)
    except PluginError as error:
        return _File(entry, kind=kind, error=error)


def _unknown(name: str, files: list[_File]) -> PluginError | UnknownNameError:
    """What to say of a name nobody claims: a broken file may well have been meant."""
    for file in files:
        if file.error is not None:
            return file.error
    known = {entry.name for entry in installed()} | {file.entry.name for file in files if file.kind == "architecture"}
    step = did_you_mean(name, known) if known else "Reinstall archbench: even its built-in plugins are missing"
    return UnknownNameError(f"architecture {name!r}", "no installed package and no --plugin provides it", step)
