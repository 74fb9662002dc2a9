"""Which diagnostic tasks there are, and how to get them: installed, and in files named by the user.

Tasks come through the same door for all: the hook ``tasks`` of a module that an entry point of the group
``archbench.tasks`` names, or of a ``--plugin`` file. A module may offer several; each plugin has a manager of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from archbench.errors import ArchbenchWarning, DuplicateNameError, PluginError, UnknownNameError, did_you_mean
from archbench.hookspecs import TASK_GROUP
from archbench.plugin.contract import call_hook, check_hooks, hooks_of, new_manager, wrong_result
from archbench.plugin.discovery import Entry, file_entry, installed, plugin_files, plugin_paths
from archbench.plugin.importing import import_file, import_installed, plugin_code

if TYPE_CHECKING:
    from archbench.data.tasks import Task


def available_tasks(plugins: Iterable[str | Path] = ()) -> dict[str, Task]:
    """Every task by its name, the built-in ones first.

    Args:
        plugins: files and folders; those that offer no tasks are for others.

    Warns:
        ArchbenchWarning: an installed plugin cannot be used; the others are.

    Raises:
        PluginError: one of ``plugins`` offers tasks that cannot be used.
        DuplicateNameError: two plugins offer a task of one name.
    """
    found: dict[str, tuple[Task, Entry]] = {}
    for entry, plugin in [*_installed(), *_files(plugins)]:
        for task in _tasks_of(entry, plugin):
            if task.name in found:
                other = found[task.name][1]
                cause = f"two plugins offer it: {other.package} ({other.source}) and {entry.package} ({entry.source})"
                raise DuplicateNameError(f"task {task.name!r}", cause, "Rename one, or leave one plugin out")
            found[task.name] = task, entry
    return {name: task for name, (task, _) in found.items()}


def load_tasks(names: Sequence[str], plugins: Iterable[str | Path] = ()) -> list[Task]:
    """The tasks of these names, in their order; all of them for no names.

    Raises:
        UnknownNameError: there is no task of one of the names.
        PluginError: as :func:`available_tasks`.
    """
    tasks = available_tasks(plugins)
    for name in names:
        if name not in tasks:
            raise UnknownNameError(f"task {name!r}", "there is no such task", did_you_mean(name, tasks))
    return [tasks[name] for name in dict.fromkeys(names)] if names else list(tasks.values())


def _installed() -> Iterable[tuple[Entry, object]]:
    own: list[Entry] = []
    others: list[Entry] = []
    for entry in installed(TASK_GROUP):
        (own if entry.package == "archbench" else others).append(entry)
    for entry in own + others:
        try:
            plugin = import_installed(entry)
            check_hooks(plugin, entry.culprit, required=("tasks",))
        except PluginError as error:
            warnings.warn(f"its tasks are left out: {error}", ArchbenchWarning, stacklevel=3)
        else:
            yield entry, plugin


def _files(plugins: Iterable[str | Path]) -> Iterable[tuple[Entry, object]]:
    """Files with the hook; one that is broken in another way is :mod:`archbench.plugin.registry`'s to complain of."""
    for place in plugin_paths(plugins):
        for path in plugin_files(place):
            try:
                plugin = import_file(path)
            except PluginError as error:
                warnings.warn(f"its tasks, if it has any, are left out: {error}", ArchbenchWarning, stacklevel=3)
                continue
            hooks = hooks_of(plugin)
            if "tasks" in hooks or (not hooks and hasattr(plugin, "tasks")):  # the latter: its mark was forgotten
                entry = file_entry(path)
                check_hooks(plugin, entry.culprit, required=("tasks",))
                yield entry, plugin


def _tasks_of(entry: Entry, plugin: object) -> list[Task]:
    from archbench.data.tasks import check_task

    manager = new_manager()
    manager.register(plugin, name=entry.source)
    with plugin_code():
        offered = call_hook(manager.hook.tasks, "tasks", entry.culprit)
        if not isinstance(offered, Sequence):
            raise wrong_result(entry.culprit, "tasks", offered, "a list of archbench.Task")
        return [check_task(task, entry.culprit) for task in offered]
