"""Where plugins are: installed entry points, and files and folders named by the user.

Entry points are read from package metadata, so no plugin is imported to know its name. The current directory is
never searched: neither for packages nor for metadata. A file is loaded by its path, under a private module name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

from archbench.errors import PluginImportError, UsageError
from archbench.hookspecs import GROUP

PLUGINS_VARIABLE = "ARCHBENCH_PLUGINS"
"""Environment variable naming plugin files and folders, separated as in PATH."""


@dataclass(frozen=True)
class Entry:
    """One claim to an architecture's name.

    Attributes:
        name: the architecture; the path, for a file that cannot even say its name.
        package: the distribution it comes with, or the path of the file.
        version: the distribution's version; ``sha256:…`` of a file's text, or of all in its package.
        source: the module (``package.module`` or ``package.module:object``), or the absolute path of the file.
    """

    name: str
    package: str
    version: str
    source: str

    @property
    def is_file(self) -> bool:
        """Whether it was named by the user as a file or folder, rather than installed."""
        return os.path.isabs(self.source)

    @property
    def culprit(self) -> str:
        """How an error names this plugin."""
        if self.is_file:
            return f"plugin {self.package}" if self.name == self.package else f"plugin {self.name!r} ({self.package})"
        return f"plugin {self.name!r} (package {self.package} {self.version})"


def file_entry(path: str, name: str | None = None) -> Entry:
    """The claim of a plugin file, or of a package's folder; its path stands in for the name until that is known."""
    place = Path(path)
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        digest.update(file.read_bytes())
    return Entry(name or path, path, f"sha256:{digest.hexdigest()[:12]}", path)


def installed(group: str = GROUP) -> list[Entry]:
    """Entry points of the group, sorted by name; nothing is imported.

    A package that is found twice on ``sys.path`` counts once, the first time, as in Python's own imports.
    """
    path = [folder for folder in sys.path if folder not in ("", ".")]
    entries: list[Entry] = []
    seen: set[str] = set()
    for distribution in metadata.distributions(path=path):
        package = distribution.metadata["Name"]
        if (
            package is None or (key := re.sub(r"[-_.]+", "-", package).lower()) in seen
        ):  # a half-removed package has no name
            continue
        seen.add(key)
        points = [point for point in distribution.entry_points if point.group == group]
        entries += [Entry(point.name, package, distribution.version, point.value) for point in points]
    return sorted(entries, key=lambda entry: (entry.name, entry.package))


def source_path(entry: Entry) -> Path | None:
    """The file that an entry's module is in, or the folder of a package; None where it is not there. Imports nothing.

    ``importlib.util.find_spec`` would import the packages that the module is in.
    """
    if entry.is_file:
        return Path(entry.source)
    parts = entry.source.partition(":")[0].split(".")
    path: Sequence[str] | None = None
    file = None
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        spec = next((found for finder in sys.meta_path if (found := finder.find_spec(name, path))), None)
        if spec is None:
            return None
        path, file = spec.submodule_search_locations, spec.origin
    if path is not None:
        return Path(next(iter(path)))
    return Path(file) if file is not None else None


def is_same_plugin(entry: Entry, file: Entry) -> bool:
    """Whether ``file``, named by its path, is what ``entry`` has installed, or a copy of it."""
    if entry.name != file.name:
        return False
    source = source_path(entry)
    return source is not None and source.exists() and file_entry(str(source)).version == file.version


def plugin_paths(plugins: Iterable[str | Path] = ()) -> tuple[str, ...]:
    """Absolute paths of the plugin files and folders asked for: ``plugins``, then ``ARCHBENCH_PLUGINS``.

    Raises:
        UsageError: one of them does not exist.
    """
    asked = [("--plugin", os.fspath(path)) for path in plugins]
    asked += [(PLUGINS_VARIABLE, path) for path in os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep) if path]
    paths: dict[str, None] = {}
    for option, given in asked:
        path = Path(given).expanduser()
        if not path.exists():
            raise UsageError(
                f"{option} {given}", "there is no such file or folder", "Correct the path, or leave it out"
            )
        paths[str(path.resolve())] = None
    return tuple(paths)


def project_plugin(name: str, folder: Path) -> Path | None:
    """The file, or package's folder, that the project around ``folder`` declares as the architecture ``name``.

    So that a project's tests are of the code beside them, installed or not. None where the nearest ``pyproject.toml``
    has no such entry point, or one into a package, which cannot be loaded by its path.

    Raises:
        UsageError: the ``pyproject.toml`` is no TOML.
    """
    files = (parent / "pyproject.toml" for parent in (folder, *folder.parents))
    settings = next((file for file in files if file.is_file()), None)
    if settings is None:
        return None
    try:
        project = tomllib.loads(settings.read_text("utf-8")).get("project", {})
    except ValueError as error:
        raise UsageError(str(settings), f"it cannot be read: {one_line(error)}", "Correct it") from error
    module = project.get("entry-points", {}).get(GROUP, {}).get(name)
    places = [settings.parent / root / f"{module}{end}" for root in (".", "src") for end in (".py", "")]
    return next((place for place in places if place.exists()), None) if module else None


def plugin_files(path: str) -> Iterator[str]:
    """The plugins at ``path``: a file, a package, or every ``*.py`` of another folder but those starting with "_".

    Raises:
        UsageError: it is not Python, or a folder without plugins.
    """
    place = Path(path)
    if place.is_file() and place.suffix == ".py":
        yield path
    elif place.is_file():
        raise UsageError(f"--plugin {path}", "it is not a Python file", "Name a .py file, or a folder of them")
    elif (place / "__init__.py").is_file():
        yield path
    else:
        files = sorted(file for file in place.glob("*.py") if not file.name.startswith("_") and file.is_file())
        if not files:
            raise UsageError(
                f"--plugin {path}", "there is no plugin in that folder", "Name a folder with .py files, or one file"
            )
        yield from map(str, files)


_overwritten: dict[str, str | None] = {}
"""Environment variables that plugins have set in this process, and their values before; None: they were not there."""


@contextmanager
def strangers_code() -> Iterator[None]:
    """Around what a plugin does in this process: its prints go to stderr, and a copy of the process that it forks ends.

    Standard output is for results; a copy that went on would do everything a second time.
    """
    process, before = os.getpid(), dict(os.environ)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if os.getpid() != process:
            os._exit(1)
        for name in before.keys() | os.environ.keys():
            if before.get(name) != os.environ.get(name):
                _overwritten.setdefault(name, before.get(name))


def clean_environment() -> dict[str, str]:
    """This process's environment variables without what plugins made of them: for the processes of other plugins."""
    variables = {**os.environ, **_overwritten}
    return {name: value for name, value in variables.items() if value is not None}


def import_installed(entry: Entry) -> object:
    """Import the module, or the object in it, that an entry point names.

    Raises:
        PluginImportError: whatever went wrong while importing it.
    """
    try:
        with strangers_code():
            return metadata.EntryPoint(entry.name, entry.source, GROUP).load()
    except (Exception, SystemExit) as error:  # a stranger's module may even exit
        step = f"Repair or reinstall it (pip install --force-reinstall {entry.package}), or uninstall it"
        raise PluginImportError(entry.culprit, f"importing {entry.source} failed: {one_line(error)}", step) from error


_loaded: dict[str, tuple[int, ModuleType]] = {}


def import_file(path: str) -> ModuleType:
    """Load a plugin file, or a package's folder, by path; again only when the file has changed.

    Raises:
        PluginImportError: whatever went wrong while executing it.
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
        with strangers_code():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a stranger's module may even exit
        del sys.modules[name]
        raise PluginImportError(
            f"plugin {path}", f"loading it failed: {one_line(error)}", _after_failed_file(place, error)
        ) from error
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


def one_line(error: BaseException) -> str:
    """An exception's type and message as one clause of a sentence."""
    message = " ".join(str(error).split()).rstrip(".")
    if len(message) > 400:
        message = message[:400] + " …"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
