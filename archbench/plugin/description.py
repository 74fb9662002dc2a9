"""What each architecture says about itself, whatever its plugin does when it is imported.

Listing plugins runs code of strangers of which nobody needs all to work. So it runs in a child process; a plugin that
hangs, exits or crashes there is described as broken, and another child does the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from archbench.child.process import Child, LostError
from archbench.errors import ArchbenchError, ArchbenchWarning, PluginError, PluginImportError
from archbench.plugin.description_cache import Description
from archbench.plugin.discovery import PLUGINS_VARIABLE, Entry, installed
from archbench.plugin.importing import import_limit
from archbench.plugin.registry import ARCHITECTURE, available, load, load_file

if TYPE_CHECKING:
    from archbench.child.entry import Parent

OURS = "archbench"
"""The package whose plugins are described in this process."""


def described_anew(files: list[str], known: Collection[str]) -> list[Description]:
    """Every architecture but those whose file or module is ``known``; ``error`` is None unless it is broken."""
    files = [file for file in files if file not in known]
    strangers = {
        entry.source: entry
        for entry in installed(ARCHITECTURE.group)
        if entry.package != OURS and entry.source not in known
    }
    if not files and not strangers:
        return _descriptions([], known)
    broken: dict[str, PluginImportError] = {}
    while True:
        try:
            found = _described_apart(files, [*known, *broken])
        except _BrokenError as lost:
            broken[lost.source] = lost.error
        else:
            break
    return found + [_broken(strangers.get(source) or Entry.of_file(source), error) for source, error in broken.items()]


class _BrokenError(Exception):
    """A child was lost while it ran the code of one plugin."""

    def __init__(self, source: str, error: PluginImportError) -> None:
        super().__init__(source)
        self.source, self.error = source, error


def _described_apart(files: list[str], skip: list[str]) -> list[Description]:
    request = {"files": [file for file in files if file not in skip], "skip": skip}
    limit, at = import_limit() + max(1.0, import_limit() / 10), ""  # an import in Python ends by itself after the limit
    variables = {PLUGINS_VARIABLE: None}
    with Child(__name__, request, culprit="the plugins found", variables=variables) as child:
        clock = child.own_time()
        while True:
            try:
                message = child.receive(limit if at else None, clock)
            except LostError as lost:
                if not at:
                    raise
                step = "Correct it, or leave it out"
                raise _BrokenError(at, PluginImportError(f"plugin {at}", f"its process {lost}", step)) from lost
            if "found" in message:
                found: list[Description] = message["found"]
                return found
            at = message["at"]


def main(parent: Parent, request: dict[str, Any]) -> None:
    """The child: say which plugin's code runs next, then send all descriptions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ArchbenchWarning)  # about broken files, which have descriptions of their own
        found, good = [], []
        for file in request["files"]:
            parent.send({"at": file})
            error = load_file(file).error
            if isinstance(error, PluginImportError):  # which may have taken long: not again
                found.append(_broken(Entry.of_file(file), error))
            else:
                good.append(file)
        for entry in installed(ARCHITECTURE.group):
            if entry.package != OURS and entry.source not in request["skip"]:
                parent.send({"at": entry.source})
                with suppress(PluginError):
                    load(entry.name)
    parent.send({"found": found + _descriptions(good, request["skip"])})


def _descriptions(files: list[str], skip: Iterable[str]) -> list[Description]:
    claims: dict[str, list[Entry]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ArchbenchWarning)
        for entry in available(files):
            if entry.source not in skip:
                claims.setdefault(entry.name, []).append(entry)
        found = []
        for name, entries in claims.items():
            one = _description(name, entries)
            try:
                architecture = load(name, files)
            except ArchbenchError as error:
                found.append(one | {"error": _as_values(error)})
                continue
            info, wrappers = architecture.info, list(architecture.wrappers)
            said = {"summary": info.summary, "paper": info.paper, "presets": list(info.presets)}
            found.append(one | said | {"wrappers": wrappers})
    return found


def _description(name: str, entries: list[Entry]) -> Description:
    return {
        "name": name,
        "packages": [f"{entry.package} {entry.version}" for entry in entries],
        "sources": [entry.source for entry in entries],
        "summary": None,
        "paper": None,
        "presets": [],
        "wrappers": [],
        "error": None,
    }


def _broken(entry: Entry, error: PluginError) -> Description:
    return _description(entry.name, [entry]) | {"error": _as_values(error)}


def _as_values(error: ArchbenchError) -> dict[str, str]:
    return {**error.as_dict(), "message": str(error)}
