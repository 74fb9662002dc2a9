"""Where plugins are: installed entry points, and files and folders named by the user.

Entry points are read from package metadata, so no plugin is imported to know its name. The current directory is
never searched: neither for packages nor for metadata.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from archbench.errors import UsageError
from archbench.hookspecs import GROUP

PLUGINS_VARIABLE = "ARCHBENCH_PLUGINS"
"""Environment variable naming plugin files and folders, separated as in PATH."""


@dataclass(frozen=True)
class Entry:
    """One claim to a name.

    Attributes:
        name: the architecture, task or tracker; the path, for a file whose name is not known.
        package: the distribution it comes with, or the path of the file.
        version: the distribution's version; ``sha256:…`` of a file's text, or of its package's files.
        source: the module (``package.module`` or ``package.module:object``), or the absolute path of the file.
    """

    name: str
    package: str
    version: str
    source: str

    @classmethod
    def of_file(cls, path: str, name: str | None = None) -> Entry:
        """The claim of a plugin file, or of a package's folder."""
        place = Path(path)
        digest = hashlib.sha256()
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
        return cls(name or path, path, f"sha256:{digest.hexdigest()[:12]}", path)

    @property
    def is_file(self) -> bool:
        """Whether the user named it as a file or folder; otherwise it is installed."""
        return os.path.isabs(self.source)

    @property
    def culprit(self) -> str:
        """How an error names this plugin."""
        if self.is_file:
            return f"plugin {self.package}" if self.name == self.package else f"plugin {self.name!r} ({self.package})"
        return f"plugin {self.name!r} (package {self.package} {self.version})"


@dataclass(frozen=True)
class Package:
    """An installed package, by its own metadata."""

    name: str
    version: str
    distribution: metadata.Distribution


def packages() -> list[Package]:
    """Every installed package; one that is found twice on ``sys.path`` counts once, as in Python's own imports."""
    found: dict[str, Package] = {}
    for distribution in metadata.distributions(path=[folder for folder in sys.path if folder not in ("", ".")]):
        headers = _headers(distribution)
        if "Name" in headers:  # otherwise it is half removed
            key = re.sub(r"[-_.]+", "-", headers["Name"]).lower()
            found.setdefault(key, Package(headers["Name"], headers.get("Version", ""), distribution))
    return list(found.values())


_HEADER = re.compile(r"^(Name|Version):[ \t]*(\S+)", re.MULTILINE)
_known: dict[tuple[str, int, int], dict[str, str]] = {}
"""File of a package's metadata, when it was changed, and its size -> name and version."""


def _headers(distribution: metadata.Distribution) -> dict[str, str]:
    """Name and version, read once: a process that loads a plugin after another would read each README every time."""
    try:
        file = os.fspath(distribution._path / "METADATA")  # type: ignore[attr-defined]
        state = os.stat(file)
    except (AttributeError, TypeError, OSError):  # of another finder than Python's own, or without that file
        key = ("", 0, 0)
    else:
        key = (file, state.st_mtime_ns, state.st_size)
    if key in _known:
        return _known[key]
    # ``distribution.metadata`` parses all of it, which is slow.
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    headers = dict(_HEADER.findall(text.partition("\n\n")[0]))
    if key[0]:
        _known[key] = headers
    return headers


def installed(group: str, among: Iterable[Package] | None = None) -> list[Entry]:
    """Entry points of the group, sorted by name; nothing is imported.

    Args:
        among: the packages looked at; by default all.
    """
    entries = [
        Entry(point.name, package.name, package.version, point.value)
        for package in (packages() if among is None else among)
        if group in (package.distribution.read_text("entry_points.txt") or "")
        for point in package.distribution.entry_points.select(group=group)
    ]
    return sorted(entries, key=lambda entry: (entry.name, entry.package))


def source_path(entry: Entry) -> Path | None:
    """The file of an entry's module, or the folder of a package; None if it is missing. Imports nothing.

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
    """Whether ``file``, named by its path, is the plugin that ``entry`` has installed, or a copy of it."""
    if entry.name != file.name:
        return False
    source = source_path(entry)
    return source is not None and source.exists() and Entry.of_file(str(source)).version == file.version


def plugin_paths(plugins: Iterable[str | Path] = ()) -> tuple[str, ...]:
    """Absolute paths of plugin files and folders: ``plugins``, then ``ARCHBENCH_PLUGINS``.

    Raises:
        UsageError: one of them does not exist.
    """
    asked = [("--plugin", os.fspath(path)) for path in plugins]
    asked += [(PLUGINS_VARIABLE, path) for path in os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep) if path]
    paths: dict[str, None] = {}
    for option, given in asked:
        path = Path(os.path.expanduser(given))
        if not path.exists():
            raise UsageError(
                f"{option} {given}", "there is no such file or folder", "Correct the path, or leave it out"
            )
        paths[os.path.realpath(path)] = None
    return tuple(paths)


def project_plugin(name: str, folder: Path) -> Path | None:
    """The file, or package's folder, that the project around ``folder`` declares as the architecture ``name``.

    With it a project's tests use the code beside them, installed or not. None if the nearest ``pyproject.toml`` has no
    such entry point, or one for a module inside a package, which cannot be loaded by its path.

    Raises:
        UsageError: the ``pyproject.toml`` cannot be read.
    """
    files = (parent / "pyproject.toml" for parent in (folder, *folder.parents))
    settings = next((file for file in files if file.is_file()), None)
    if settings is None:
        return None
    # Late: it takes pydantic, and most commands ask for no project.
    from archbench.plugin.pyproject import read_settings

    module = read_settings(settings).project.entry_points.get(GROUP, {}).get(name)
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
