"""Importing plugins, by entry point or by path, and limiting what their code does to this process.

A file is loaded under a private module name, always from its source: beside it may lie bytecode of another.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path
from types import ModuleType

from archbench.child.inheritance import changes_for_this_process_only
from archbench.child.own_time import kept_waiting
from archbench.errors import ArchbenchError, PluginImportError, UsageError, one_line
from archbench.hookspecs import GROUP
from archbench.interruption import busy
from archbench.plugin.discovery import Entry
from archbench.plugin.trust import check_source

LIMIT_VARIABLE = "ARCHBENCH_IMPORT_LIMIT"
"""Environment variable with the seconds that importing a plugin may take."""

_PREFIX = "_archbench_plugin_"


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


def import_limit() -> float:
    """Seconds that importing one plugin may take: ``$ARCHBENCH_IMPORT_LIMIT``, or 50."""
    try:
        return float(os.environ.get(LIMIT_VARIABLE, "50"))
    except ValueError:
        step = "Give seconds, or unset it"
        raise UsageError(LIMIT_VARIABLE, f"{os.environ[LIMIT_VARIABLE]!r} is not a number", step) from None


@contextmanager
def _importing(plugin: str) -> Iterator[None]:
    """Run a plugin's import as :func:`plugin_code`, and end it when it takes too long by itself.

    An import that hangs inside a C function, on another thread than the main one, or on Windows is not ended.
    """
    with plugin_code(), busy(f"while plugin {plugin} was imported"):
        if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
            yield
            return
        limit = import_limit()
        ends = time.monotonic() + limit - kept_waiting()

        def expired(signal_number: int, frame: object) -> None:
            left = ends + kept_waiting() - time.monotonic()
            if left > 0:
                signal.setitimer(signal.ITIMER_REAL, max(left, 0.01))
                return
            raise TimeoutError(f"it took longer than {limit:g} s; {LIMIT_VARIABLE} allows another time")

        previous = signal.signal(signal.SIGALRM, expired)
        try:
            signal.setitimer(signal.ITIMER_REAL, limit)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


class _SourceOnly(SourceFileLoader):
    """Loads a plugin from its source, which is what has been judged, and neither reads nor writes bytecode."""

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError("no bytecode")

    def get_data(self, path: str) -> bytes:
        source = super().get_data(path)
        check_source(path, source)
        return source


class _PackageFinder:
    """Finds the modules inside packages that were loaded by path."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None or not name.startswith(_PREFIX):
            return None
        kinds = ((_SourceOnly, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES))
        specs = (FileFinder(folder, *kinds).find_spec(name) for folder in path)
        found = next((spec for spec in specs if spec is not None), None)
        if found is not None and isinstance(found.loader, ExtensionFileLoader):  # the system loads it by its path
            check_source(found.loader.path, Path(found.loader.path).read_bytes())
        return found


sys.meta_path.insert(0, _PackageFinder)


def import_installed(entry: Entry) -> object:
    """Import the module, or the object in it, that an entry point names.

    Raises:
        PluginImportError: importing it failed, for any reason.
    """
    try:
        with _importing(entry.source):
            return metadata.EntryPoint(entry.name, entry.source, GROUP).load()
    except (Exception, SystemExit) as error:  # a plugin may even exit
        # Not "reinstall": by its name alone, an index may offer somebody else's package.
        step = f"Repair it, or uninstall it: pip uninstall {entry.package}"
        raise _import_error(entry.culprit, f"importing {entry.source}", error, step) from error


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
    name = f"{_PREFIX}{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(
        name, file, loader=_SourceOnly(name, str(file)), submodule_search_locations=[path] if package else None
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and relative imports look their module up there
    try:
        with _importing(path):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a plugin may even exit
        del sys.modules[name]
        raise _import_error(f"plugin {path}", "loading it", error, _after_failed_file(place, error)) from error
    _loaded[path] = (stamp, module)
    return module


def import_part(package: str, name: str) -> ModuleType:
    """The module of that name in a package that :func:`import_file` loads.

    Raises:
        PluginImportError: loading it failed, for any reason.
    """
    whole = import_file(package)
    try:
        with _importing(package):
            return importlib.import_module(f"{whole.__name__}.{name}")
    except (Exception, SystemExit) as error:
        step = f"Install what it imports, or correct {name}.py where it is from; --debug shows where it failed"
        raise _import_error(f"plugin {package}", f"loading its {name}.py", error, step) from error


def loaded_from(plugin: object) -> str:
    """The path that :func:`import_file` was given for this plugin."""
    return next(path for path, (_, module) in _loaded.items() if module is plugin)


def _import_error(culprit: str, work: str, error: BaseException, step: str) -> PluginImportError:
    """``error`` of a plugin's own code; one that says what to do next needs no other ``step``."""
    if isinstance(error, ArchbenchError):
        return PluginImportError(culprit, f"{work} failed: {error.culprit}: {error.cause}", error.next_step)
    return PluginImportError(culprit, f"{work} failed: {one_line(error)}", step)


def _after_failed_file(place: Path, error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and not place.is_dir() and (place.parent / f"{missing}.py").exists():
        return (
            f"A plugin file is loaded by path, so {missing}.py beside it cannot be imported: make the folder a package "
            f"(with __init__.py), and write 'from . import {missing}'"
        )
    return f"Install {missing}, or correct the import" if missing else "Correct the file; --debug shows where it failed"
