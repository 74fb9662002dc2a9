"""Importing plugins, by entry point or by path, and limiting what their code does to this process.

A file is loaded under a private module name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path
from types import ModuleType

from archbench.child.environment import changes_for_this_process_only
from archbench.errors import PluginImportError, one_line
from archbench.hookspecs import GROUP
from archbench.plugin.discovery import Entry


@contextmanager
def plugin_code() -> Iterator[None]:
    """Run a plugin's code in this process: its prints go to stderr, and a process that it forks ends here.

    Standard output is for results; a forked process that continued would do everything a second time.
    """
    process = os.getpid()
    try:
        with changes_for_this_process_only(), redirect_stdout(sys.stderr):
            yield
    finally:
        if os.getpid() != process:
            os._exit(1)


def import_installed(entry: Entry) -> object:
    """Import the module, or the object in it, that an entry point names.

    Raises:
        PluginImportError: importing it failed, for any reason.
    """
    try:
        with plugin_code():
            return metadata.EntryPoint(entry.name, entry.source, GROUP).load()
    except (Exception, SystemExit) as error:  # a plugin may even exit
        step = f"Repair or reinstall it (pip install --force-reinstall {entry.package}), or uninstall it"
        raise PluginImportError(entry.culprit, f"importing {entry.source} failed: {one_line(error)}", step) from error


_loaded: dict[str, tuple[int, ModuleType]] = {}


def import_file(path: str) -> ModuleType:
    """Load a plugin file, or a package's folder, by path; reload it only if the file has changed.

    Raises:
        PluginImportError: loading it failed, for any reason.
    """
    place = Path(path)
    package = place.is_dir()
    file = place / "__init__.py" if package else place
    stamp = file.stat().st_mtime_ns
    if path in _loaded and _loaded[path][0] == stamp:
        return _loaded[path][1]
    name = f"_archbench_plugin_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[path] if package else None)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and relative imports look their module up there
    try:
        with plugin_code():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a plugin may even exit
        del sys.modules[name]
        cause, step = f"loading it failed: {one_line(error)}", _after_failed_file(place, error)
        raise PluginImportError(f"plugin {path}", cause, step) from error
    _loaded[path] = (stamp, module)
    return module


def loaded_from(plugin: object) -> str:
    """The path that :func:`import_file` was given for this plugin."""
    return next(path for path, (_, module) in _loaded.items() if module is plugin)


def _after_failed_file(place: Path, error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and not place.is_dir() and (place.parent / f"{missing}.py").exists():
        return (
            f"A plugin file is loaded by path, so {missing}.py beside it cannot be imported: make the folder a package "
            f"(with __init__.py), and write 'from . import {missing}'"
        )
    return f"Install {missing}, or correct the import" if missing else "Correct the file; --debug shows where it failed"
