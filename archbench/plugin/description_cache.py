"""What architectures say about themselves, kept in the cache: listed or shown again, none is imported, so no torch.

What is kept holds for one state of all that decides it: the text of the plugins and of archbench, the versions of all
packages, of Python and of the platform. A broken plugin is not kept: it is asked anew each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import archbench
from archbench.data.cache import cache_folder, content_key, write_atomically
from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.loader import read_json
from archbench.files.seal import sealed
from archbench.hookspecs import GROUP
from archbench.plugin.discovery import Entry, Package, installed, packages, plugin_files, plugin_paths, source_path

Description = dict[str, Any]
"""``name``, ``packages``, ``sources``, ``versions``, ``summary``, ``paper``, ``presets``, ``wrappers``, ``error``."""

MOST_FILES = 1000
"""Python files of a package that holds a plugin; what a larger one says is not kept."""


def described(plugins: Iterable[str | Path] = ()) -> list[Description]:
    """Every architecture, by name; ``error`` is None unless it is broken.

    Args:
        plugins: files and folders, beside the installed ones and ``ARCHBENCH_PLUGINS``.

    Warns:
        ArchbenchWarning: the cache cannot be written.

    Raises:
        UsageError: a file or folder in ``plugins`` does not exist, or has no plugin.
    """
    files = [file for place in plugin_paths(plugins) for file in plugin_files(place)]
    here = packages()
    entries = installed(GROUP, here)
    sources = {*files, *(entry.source for entry in entries)}
    state = _state(entries, files, here)
    kept = _kept(state) if state is not None else []
    if sources <= _sources(kept):
        return [one for one in kept if one["name"] is not None]
    from archbench.plugin.description import described_anew

    whole = [one for one in kept if one["name"] is not None]
    found = sorted([*whole, *described_anew(files, _sources(whole))], key=lambda one: str(one["name"]))
    good = _unbroken(found, sources)
    if state is not None and good != kept:
        _keep(state, good)
    return found


def described_once(plugins: Iterable[str | Path], *asked: str, make: Callable[[], Description]) -> Description:
    """What ``make`` returns: it is not called again in the same state.

    Nothing is kept if it warns, or where another package or a file has a plugin: that may import what no state holds.

    Args:
        plugins: as in :func:`described`.
        asked: the question.

    Warns:
        ArchbenchWarning: the cache cannot be written.

    Raises:
        UsageError: as :func:`described`; and whatever ``make`` raises.
    """
    files, here = [file for place in plugin_paths(plugins) for file in plugin_files(place)], packages()
    entries = installed(GROUP, here)
    foreign = files or any(entry.package != "archbench" for entry in entries)
    state = None if foreign else _state(entries, files, here)
    question = None if state is None else json.dumps([state, *asked])
    if question is not None and (kept := _kept(question)):
        return kept[0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = make()
    for one in said:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if question is not None and not said:
        _keep(question, [found])
    return found


def _keep(state: str, descriptions: list[Description]) -> None:
    text = sealed({"state": state, "descriptions": descriptions})
    try:
        write_atomically(_file(state), lambda out: out.write(text.encode()))
    except StorageError as error:
        warnings.warn(f"what plugins say is not kept: {error}", ArchbenchWarning, stacklevel=3)


def _unbroken(found: list[Description], sources: set[str]) -> list[Description]:
    """What can be kept. Files that are no architecture (wrappers, tasks) share one description, without a name."""
    broken = _sources(one for one in found if one["error"] is not None)
    good = [one for one in found if not broken & {*one["sources"]}]
    silent = sources - broken - _sources(good)
    return [*good, {"name": None, "sources": sorted(silent)}] if silent else good


def _sources(descriptions: Iterable[Description]) -> set[str]:
    return {source for one in descriptions for source in one["sources"]}


def _kept(state: str) -> list[Description]:
    if not _file(state).exists():
        return []
    try:
        content = read_json(_file(state), sealing="required", next_step="It is made again")
    except StorageError as error:
        import logging

        logging.getLogger(__name__).warning("what plugins said is damaged, and they are asked again: %s", error)
        return []
    found: list[Description] = content["descriptions"] if content["state"] == state else []
    return found


def _file(state: str) -> Path:
    return cache_folder() / "descriptions" / f"{content_key(state)}.json"


def _state(entries: list[Entry], files: list[str], here: list[Package]) -> str | None:
    """All that decides what plugins say, as text; None if that is too much to read."""
    modules = {entry.source.partition(":")[0].partition(".")[0] for entry in entries}
    places = [source_path(Entry(name, name, "", name)) for name in sorted(modules)]
    digests = {}
    for place in [Path(archbench.__file__).parent, *filter(None, places), *map(Path, files)]:
        digest = _digest(place)
        if digest is None:
            return None
        digests[str(place)] = digest
    claims = [(entry.name, entry.package, entry.version, entry.source) for entry in entries]
    return json.dumps(
        [digests, claims, files, sorted(f"{one.name} {one.version}" for one in here), sys.version, sys.platform]
    )


def _digest(place: Path) -> str | None:
    """Of a file, or of all Python files in a folder and their names; None if they are too many or cannot be read."""
    digest = hashlib.sha256()
    try:
        for number, file in enumerate(_texts(place)):
            if number == MOST_FILES:
                return None
            with open(file, "rb") as opened:
                content = opened.read()
            digest.update(f"{file[len(str(place)) :]} {len(content)}\n".encode("utf-8", "surrogateescape") + content)
    except OSError:
        return None
    return digest.hexdigest()


def _texts(place: Path) -> Iterator[str]:
    """Paths as text: those of pathlib take as long as reading the files."""
    if not place.is_dir():
        yield str(place)
    for folder, folders, files in os.walk(place):
        folders.sort()
        yield from (os.path.join(folder, file) for file in sorted(files) if file.endswith(".py"))
