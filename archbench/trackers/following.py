"""The trackers of a run, from the run's process: they start before anything else, and their faults are warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from archbench.child.process import Child, LostError
from archbench.errors import ArchbenchError, ArchbenchWarning, PluginError, PluginImportError, UsageError
from archbench.plugin.discovery import Entry
from archbench.plugin.registry import TRACKER, find
from archbench.trackers.tracker import Status

LONGEST_START = 120.0
"""Seconds that a tracker may take to be imported, and again to start; W&B waits 90 s for its server."""

LONGEST_FINISH = 300.0
"""Seconds that a tracker may take to send its last data."""


@contextmanager
def followed_by(names: Sequence[str], *, quiet: bool) -> Iterator[Trackers]:
    """The trackers of these names, each loaded in a child process; they end with this context.

    Raises:
        UnknownNameError: no such tracker.
        UsageError: a library that it needs is not installed.
        PluginError: it cannot be loaded.
    """
    with ExitStack() as stack:
        found = find(TRACKER, names).values()
        processes = [stack.enter_context(TrackerProcess(entry, quiet=quiet)) for entry in found]
        for process in processes:
            process.wait_until_loaded()
        yield Trackers(processes)


class Trackers:
    """All trackers of one run. One that fails costs one :class:`ArchbenchWarning`."""

    def __init__(self, processes: Sequence[TrackerProcess]) -> None:
        self._processes = processes

    def start(self, run_id: str, configuration: Mapping[str, Any], folder: Path) -> None:
        """The run begins or is resumed; arguments as of :meth:`archbench.trackers.tracker.Tracker.start`.

        From now on the trackers read what a :class:`~archbench.trackers.feed.Feed` writes to ``folder``.
        """
        self._order(LONGEST_START, "start", run_id, configuration, str(folder.resolve()))

    def finish(self, rows: Sequence[Mapping[str, Any]], status: Status) -> None:
        """The run is over, with the rows of its finished phases. An interrupted one does not wait for the trackers."""
        if status == "interrupted":
            for process in self._processes:
                process.send(("finish", rows, status))
        else:
            self._order(LONGEST_FINISH, "finish", rows, status)

    def _order(self, limit: float, *order: Any) -> None:
        asked = [process for process in self._processes if not process.failed]
        for process in asked:
            process.send(order)
        for process in asked:
            if (failure := process.answer(limit, str(order[0]))["failure"]) is not None:
                process.failed = True
                _warn(process.name, **failure)


class TrackerProcess(Child):
    """One tracker in its child process (:mod:`archbench.trackers.session`), which outlives an interrupted run."""

    def __init__(self, entry: Entry, *, quiet: bool) -> None:
        request = {"name": entry.name, "source": entry.source}
        culprit = f"tracker {entry.name!r}"
        super().__init__("archbench.trackers.session", request, culprit=culprit, quiet=quiet, lingers=True)
        self.name = entry.name
        self.failed = False
        self._entry = entry

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._begun.close()
            self.leave()
        else:
            super().__exit__(kind, error, trace)

    def wait_until_loaded(self) -> None:
        """Raises as :func:`followed_by` does."""
        answer = self.answer(LONGEST_START, "load")
        if answer["failure"] is not None:
            raise self._load_error(answer["failure"]["cause"], answer.get("missing"))

    def answer(self, limit: float, during: str) -> dict[str, Any]:
        """The answer to the last order; a failure if the process dies or takes longer than ``limit`` seconds."""
        try:
            answer: dict[str, Any] = self.receive(limit)
        except LostError as lost:
            cause = f"it {lost}" if lost.code is None else f"its process {lost}"
            return {"failure": {"during": during, "cause": cause}}
        return answer

    def _load_error(self, cause: str, missing: str | None) -> ArchbenchError:
        culprit, package = f"tracker {self.name!r}", self._entry.package
        if missing is None or missing.partition(".")[0] == self._entry.source.partition(":")[0].partition(".")[0]:
            step = f"Repair or reinstall {package}, or run without this tracker"
            kind = PluginError if missing is None else PluginImportError
            return kind(f"{culprit} (package {package})", f"loading it failed: {cause}", step)
        extras = metadata.metadata(package).get_all("Provides-Extra") or []
        wanted = f"'{package}[{self.name}]'" if self.name in extras else missing.partition(".")[0]
        cause = f"it needs {missing}, which is not installed"
        return UsageError(culprit, cause, f"Install it with: pip install {wanted}")


def _warn(name: str, *, during: str, cause: str) -> None:
    happened = {"start": "it could not start", "log": "it failed in training", "finish": "it could not finish"}[during]
    warnings.warn(
        f"tracker {name!r}: {happened}: {cause}. It is left out of the rest of this run, whose results are not "
        f"affected. Correct the cause before the next run, or leave the tracker out.",
        ArchbenchWarning,
        stacklevel=5,
    )
