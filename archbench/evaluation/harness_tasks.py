"""Tasks of lm-evaluation-harness by name, with their data: from the hub, from its cache, or from a folder.

All is found before a model is asked anything, and what is missing is named at once.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import huggingface_hub.constants
import lm_eval.tasks
from lm_eval.tasks import TaskManager

from archbench.errors import DataError, UnknownNameError, UsageError, one_line
from archbench.evaluation.harness_noise import without_noise

_DEFINED = re.compile(rb"^(?:task|group|tag):[ \t]*[\"']?([\w./+-]+)|^[ \t]+- ([\w./+-]+)[ \t]*$", re.MULTILINE)
"""Names in a task file: its own, and those in lists, such as its tags."""


def load_tasks(names: Sequence[str], shots: int | None, data: str | None) -> dict[str, Any]:
    """The tasks and groups, by ``TaskManager.load`` of the harness, with their data.

    Args:
        names: tasks, groups and tags, or YAML files.
        shots: examples before each question; None for each task's own number. A task that sets 0 keeps it.
        data: a folder with data sets (``DATA/ORG/NAME``, each as the hub has it) and task files; None for the hub.

    Raises:
        UnknownNameError: there is no such task.
        DataError: data are missing, or a task file is damaged.
        UsageError: no folder ``data``, or a task occurs twice.
    """
    folder = None if data is None else Path(data)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--data {data}", "there is no such folder", "Name one with the tasks' data sets")
    manager = _manager(names, folder)
    missing: list[str] = []
    with _data_in(folder, missing), without_noise():
        for name in names:  # each, so that all missing data are named at once
            with contextlib.suppress(_MissingError):
                _loaded(manager, name)
        if missing:
            sets = " and ".join(dict.fromkeys(missing))
            raise DataError("archbench eval", f"data are missing: {sets}", _step(data))
        try:
            found: dict[str, Any] = manager.load([*names])
        except ValueError as error:
            raise UsageError("--tasks", one_line(error), "Name each task once") from error
    for task in found["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=1234)  # the harness's
    return found


class _MissingError(Exception):
    """A data set that is not there."""


def _manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    """A manager that knows these tasks. To index all of the harness's 14,000 takes ten seconds or more.

    Raises:
        UnknownNameError: it cannot know one.
    """
    own = Path(lm_eval.tasks.__file__).parent
    wanted = {name for name in names if not name.endswith(".yaml")}
    if folder is not None:
        wanted -= {*TaskManager(include_defaults=False, include_path=folder).all_tasks}
    places, known = set[Path](), set[str]()
    for file in own.rglob("*.yaml") if wanted else ():
        defined = {name.decode() for pair in _DEFINED.findall(file.read_bytes()) for name in pair if name}
        known |= defined
        if wanted & defined:
            places.add(own / file.relative_to(own).parts[0])
    includes = [*sorted(places), *([] if folder is None else [folder])]
    manager = TaskManager(include_defaults=False, include_path=includes)
    if not wanted <= {*manager.all_tasks}:
        manager = TaskManager(include_path=folder)  # names that only Python makes
    for name in sorted(wanted - {*manager.all_tasks}):
        close = difflib.get_close_matches(name, known.union(manager.all_tasks), n=5, cutoff=0.5)
        step = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        step += "lm_eval ls tasks names all"
        raise UnknownNameError(f"task {name!r}", "lm-evaluation-harness has no such task, group or tag", step)
    return manager


def _loaded(manager: TaskManager, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = manager.load([name])
    except _MissingError:
        raise
    except ImportError as error:
        step = "Install what it needs (pip install 'lm_eval[NAME OF THE TASK]' has some of it)"
        raise DataError(f"task {name!r}", f"it cannot be loaded ({one_line(error)})", step) from error
    except Exception as error:  # a task file is a program: its errors have no common base
        cause = f"it cannot be loaded ({type(error).__name__}: {one_line(error)})"
        raise DataError(f"task {name!r}", cause, "Correct the task file, or report it to its authors") from error
    return found


def _step(data: str | None) -> str:
    place = "DIR" if data is None else data
    fetch = f"hf download --repo-type dataset ORG/NAME --local-dir {place}/ORG/NAME"
    return f"Where there is network: {fetch}; then give --data {place}"


@contextlib.contextmanager
def _data_in(folder: Path | None, missing: list[str]) -> Iterator[None]:
    """Within this context data sets are read from ``folder`` if it has them; ``missing`` gets what is nowhere."""
    load, offline = datasets.load_dataset, contextlib.ExitStack()

    def found(path: str, name: str | None = None, **more: Any) -> Any:
        if folder is not None:
            path = str(folder / path) if (folder / path).is_dir() else path
            if "data_files" in more:
                more["data_files"] = _placed(more["data_files"], folder)
        try:
            return load(path, name, **more)
        except Exception as error:
            if not isinstance(error, OSError | ValueError | datasets.exceptions.DatasetsError):
                raise
            wanted = f"{path}{f' ({name})' if name else ''}"
            if "data_files" in more:
                wanted = f"{more['data_files']}"
            missing.append(f"{wanted}: {one_line(error)}")
            if isinstance(error, ConnectionError):  # each would wait for half a minute
                offline.enter_context(patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
                offline.enter_context(patch.object(datasets.config, "HF_HUB_OFFLINE", True))
            raise _MissingError from error

    with offline, patch.object(datasets, "load_dataset", found):
        yield


def _placed(files: Any, folder: Path) -> Any:
    """The names of data files, those that are in ``folder`` by their path there."""
    if isinstance(files, dict):
        return {split: _placed(one, folder) for split, one in files.items()}
    if isinstance(files, list | tuple):
        return [_placed(one, folder) for one in files]
    return str(folder / files) if (folder / files).exists() else files
