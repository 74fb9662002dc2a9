"""Which plugins there are of each kind, and how to get one.

A plugin's name is claimed by an entry point, which is read without importing anything, or by a file the user names.
Each plugin has its own pluggy manager, so exactly one belongs to a name, and a broken one breaks no other: its error is
raised when it is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from archbench.errors import (
    ArchbenchWarning,
    DuplicateNameError,
    PluginError,
    PluginImportError,
    UnknownNameError,
    UsageError,
    did_you_mean,
)
from archbench.hookspecs import (
    GROUP,
    LAUNCHER_GROUP,
    REQUIRED_HOOKS,
    SOURCE_GROUP,
    TASK_GROUP,
    TRACKER_GROUP,
    CodeOfName,
    Located,
)
from archbench.plugin.architecture import Architecture
from archbench.plugin.discovery import Entry, installed, is_same_plugin, plugin_files, plugin_paths
from archbench.plugin.hooks import Hooks, check_hooks, hooks_of, is_wrapper
from archbench.plugin.importing import import_file, import_installed, import_part, plugin_code
from archbench.plugin.trust import allow, require

if TYPE_CHECKING:
    from archbench.data.tasks import Task


@dataclass(frozen=True)
class Kind:
    """A kind of plugin.

    Attributes:
        noun: its name in errors.
        group: the entry-point group of installed ones.
        hooks: the hooks that one must have; none if entry points name a class.
    """

    noun: str
    group: str
    hooks: tuple[str, ...] = ()


ARCHITECTURE = Kind("architecture", GROUP, REQUIRED_HOOKS)
TASK = Kind("task", TASK_GROUP, ("tasks",))
TRACKER = Kind("tracker", TRACKER_GROUP)
LAUNCHER = Kind("launcher", LAUNCHER_GROUP)
SOURCE = Kind("source of architectures", SOURCE_GROUP)  # its name and a colon begin theirs
WRAPPER = Kind("wrapper", "")  # a file whose hooks are all wrappers


def claimant(kind: Kind, name: str, claims: Iterable[Entry]) -> Entry:
    """The one plugin among ``claims`` that claims ``name``.

    Raises:
        UnknownNameError: none does.
        DuplicateNameError: several do.
    """
    claims = list(claims)
    found = sorted((claim for claim in claims if claim.name == name), key=lambda claim: claim.is_file)
    if not found:
        step = _declared_here(kind, name) or did_you_mean(name, {claim.name for claim in claims})
        where = "no installed package" + (" and no --plugin" if kind.hooks else "")
        raise UnknownNameError(f"{kind.noun} {name!r}", f"{where} provides it", step)
    if len(found) > 1:
        who = " and ".join(claim.package if claim.is_file else f"{claim.package} ({claim.source})" for claim in found)
        step = "Uninstall one of the packages, or give one another name"
        if any(claim.is_file for claim in found):
            step = "Rename one, or leave the file out, or bring an outdated package up to date with pip install -e"
        raise DuplicateNameError(f"{kind.noun} {name!r}", f"{len(found)} plugins claim that name: {who}", step)
    return found[0]


def _declared_here(kind: Kind, name: str) -> str:
    """What to do where the current folder is the package of ``name``, and is not installed; "" elsewhere."""
    from archbench.plugin.pyproject import read_settings

    try:
        points = read_settings(Path("pyproject.toml")).project.entry_points
    except UsageError:  # the file was not asked for
        return ""
    module = points.get(kind.group, {}).get(name)
    return f"The pyproject.toml here declares it: pip install -e . (its code is {module})" if module else ""


def find(kind: Kind, names: Iterable[str]) -> dict[str, Entry]:
    """The installed plugins of these names, by name; nothing is imported.

    Raises:
        UnknownNameError, DuplicateNameError: as :func:`claimant`.
    """
    claims = installed(kind.group)
    return {name: (kind == ARCHITECTURE and _source(name)) or claimant(kind, name, claims) for name in names}


def full_name(name: str, *, typed: bool = False) -> str:
    """The name by which results and plans know an architecture: of one that a source finds, by its content.

    Args:
        typed: the user has just written it. Code that it leads to may then run in this command and its processes,
            unless it is a name by content, which may be copied from a file of anybody's.

    Raises:
        ArchbenchError: the source does not find it, or it leads to code that the user has not named.
    """
    if (source := _source(name)) is None:
        return name
    place = name.partition(":")[2]
    if typed and (code := _code(source, place)) is not None and code.name != place:
        allow(code.digest)
    return load(name).name


def is_located(name: str) -> bool:
    """Whether a source finds the architecture of that name, as of ``hf:PLACE``."""
    prefix, colon, _ = name.partition(":")
    return bool(colon) and any(entry.name == prefix for entry in installed(SOURCE.group))


def code_of(name: str) -> list[str]:
    """The package that an architecture's name would have run; empty for most. Nothing is run.

    Raises:
        ArchbenchError: the source does not find it.
    """
    code = None if (source := _source(name)) is None else _code(source, name.partition(":")[2])
    return [] if code is None else [str(code.package)]


def available(plugins: Iterable[str | Path] = ()) -> list[Entry]:
    """Every claim to an architecture's name: installed packages, ``plugins`` and ``ARCHBENCH_PLUGINS``, by name.

    No installed plugin is imported. Files in ``plugins`` are loaded, since only they know their names; a broken one is
    listed under its path, and :func:`load` of that path raises its error. A name claimed twice is listed twice; an
    installed plugin's own file, or a copy of it, is no second claim.

    Raises:
        UsageError: a file or folder in ``plugins`` does not exist, or has no plugin.
    """
    return _architectures(_files(plugins))


def load(name: str, plugins: Iterable[str | Path] = ()) -> Architecture:
    """Import and check the one architecture called ``name``, with the wrappers among ``plugins`` around its hooks.

    Warns:
        ArchbenchWarning: one of ``plugins`` cannot be imported, so it may have been meant for this architecture.

    Raises:
        UnknownNameError: nothing claims that name.
        DuplicateNameError: two plugins do.
        PluginError: the plugin cannot be imported, or breaks the contract; its subclasses say how.
        UsageError: a file or folder in ``plugins`` does not exist, or has no plugin.
    """
    files = _files(plugins)
    claims = _architectures(files)
    source = _source(name)
    if source is None and all(claim.name != name for claim in claims):
        for file in files:
            file.raise_error()  # the user may have meant this file
    entry = source or claimant(ARCHITECTURE, name, claims)
    located = None
    if source is not None:
        entry, located = _located(source, name)
        plugin = located.plugin
    elif entry.is_file:
        file = next(file for file in files if file.entry == entry)
        file.raise_error()
        plugin = file.plugin
    else:
        plugin = _imported(ARCHITECTURE, entry)
    wrappers = {}
    for file in files:
        if file.kind is WRAPPER:
            file.raise_error()
            wrappers[Path(file.entry.source).stem] = file.plugin
        elif isinstance(file.error, PluginImportError):
            warnings.warn(f"left out {file.error}", ArchbenchWarning, stacklevel=2)
    return Architecture(entry, plugin, wrappers, located)


def _source(name: str) -> Entry | None:
    """The installed source that finds the architecture; None for a name without a prefix."""
    prefix, colon, _ = name.partition(":")
    return claimant(SOURCE, prefix, installed(SOURCE.group)) if colon else None


def _located(source: Entry, name: str) -> tuple[Entry, Located]:
    """What the source finds, and how errors and rows name it."""
    prefix, _, place = name.partition(":")
    locate = import_installed(source)
    assert callable(locate), f"{source.culprit}: {source.source} is no function"
    if (code := _code(source, place)) is not None:
        require([str(code.package)], f"the name {name}")
    with plugin_code():
        # By the name that was judged: the place may hold something else by now.
        found = locate(place) if code is None else locate(code.name, partial(import_part, str(code.package)))
    assert isinstance(found, Located), f"{source.culprit} returned {found!r}"
    check_hooks(found.plugin, f"{name} ({source.culprit})", required=ARCHITECTURE.hooks)
    return Entry(f"{prefix}:{found.name}", found.package, found.version, source.source), found


def _code(source: Entry, place: str) -> CodeOfName | None:
    code = getattr(import_installed(source), "code", None)
    if code is None:
        return None
    with plugin_code():
        found = code(place)
    assert isinstance(found, CodeOfName), f"{source.culprit}: its method code returned {found!r}"
    return found


def available_tasks(plugins: Iterable[str | Path] = ()) -> dict[str, Task]:
    """Every diagnostic task by its name, the built-in ones first.

    Args:
        plugins: files and folders; those that offer no tasks are ignored.

    Warns:
        ArchbenchWarning: an installed plugin cannot be used, and is left out.

    Raises:
        PluginError: one of ``plugins`` offers tasks that cannot be used.
        DuplicateNameError: two plugins offer a task of one name.
    """
    offered = [
        (replace(entry, name=task.name), task)
        for entry, plugin in [*_installed_tasks(), *_task_files(plugins)]
        for task in _tasks_of(entry, plugin)
    ]
    claims = [entry for entry, _ in offered]
    return {claimant(TASK, entry.name, claims).name: task for entry, task in offered}


def load_tasks(names: Sequence[str], plugins: Iterable[str | Path] = ()) -> list[Task]:
    """The tasks of these names, in their order; all of them for no names.

    Raises:
        UnknownNameError: there is no task of one of the names.
        PluginError: as :func:`available_tasks`.
    """
    tasks = available_tasks(plugins)
    for name in names:
        if name not in tasks:
            claimant(TASK, name, [Entry(task, "", "", "") for task in tasks])
    return [tasks[name] for name in dict.fromkeys(names or tasks)]


@dataclass(frozen=True)
class _File:
    """A plugin loaded by path; ``error`` says why it cannot be used."""

    entry: Entry
    plugin: object = None
    kind: Kind = ARCHITECTURE
    error: PluginError | None = None

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error


def _files(plugins: Iterable[str | Path]) -> list[_File]:
    return [load_file(path) for place in plugin_paths(plugins) for path in plugin_files(place)]


def load_file(path: str) -> _File:
    """Import a file and ask it what it is."""
    entry, plugin, kind = Entry.of_file(path), None, ARCHITECTURE
    try:
        plugin = import_file(path)
        kind = WRAPPER if is_wrapper(plugin) else TASK if hooks_of(plugin) == {"tasks"} else ARCHITECTURE
        check_hooks(plugin, entry.culprit, required=kind.hooks)
        if kind is ARCHITECTURE:
            entry = Entry.of_file(path, name=Architecture(entry, plugin).name)
    except PluginError as error:
        return _File(entry, plugin, kind, error)
    return _File(entry, plugin, kind)


def _architectures(files: Sequence[_File]) -> list[Entry]:
    entries = installed(ARCHITECTURE.group)
    mine = [file.entry for file in files if file.kind is ARCHITECTURE]
    entries += [file for file in mine if not any(is_same_plugin(entry, file) for entry in entries)]
    return sorted(entries, key=lambda entry: (entry.name, entry.package))


def _imported(kind: Kind, entry: Entry) -> object:
    plugin = import_installed(entry)
    check_hooks(plugin, entry.culprit, required=kind.hooks)
    return plugin


def _installed_tasks() -> Iterator[tuple[Entry, object]]:
    for entry in sorted(installed(TASK.group), key=lambda entry: entry.package != "archbench"):
        try:
            yield entry, _imported(TASK, entry)
        except PluginError as error:
            warnings.warn(f"its tasks are left out: {error}", ArchbenchWarning, stacklevel=3)


def _task_files(plugins: Iterable[str | Path]) -> Iterator[tuple[Entry, object]]:
    """Files that offer tasks; :func:`load` reports those that are broken in another way."""
    for file in _files(plugins):
        if file.plugin is None:
            warnings.warn(f"its tasks, if it has any, are left out: {file.error}", ArchbenchWarning, stacklevel=3)
            continue
        hooks = hooks_of(file.plugin)
        if "tasks" in hooks or (not hooks and hasattr(file.plugin, "tasks")):  # the latter: the mark is missing
            check_hooks(file.plugin, file.entry.culprit, required=TASK.hooks)
            yield file.entry, file.plugin


def _tasks_of(entry: Entry, plugin: object) -> list[Task]:
    from archbench.data.tasks import check_task

    with plugin_code():
        offered = Hooks(plugin, entry).call("tasks", Sequence, "a list of archbench.Task")  # type: ignore[type-abstract]
        return [check_task(task, entry.culprit) for task in offered]
