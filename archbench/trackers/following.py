"""The run's side of its trackers: found by name, started before anything else, told of the end, never in the way."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from archbench.errors import (
    ArchbenchError,
    ArchbenchWarning,
    PluginError,
    PluginImportError,
    UsageError,
)
from archbench.plugin.discovery import Entry
from archbench.plugin.importing import clean_environment
from archbench.plugin.registry import TRACKER, find
from archbench.processes import end_group
from archbench.trackers.tracker import Status

LONGEST_START = 120.0
"""Seconds that a tracker may take to be imported, and again to start; W&B waits 90 s for its server."""

LONGEST_FINISH = 300.0
"""Seconds that a tracker may take to send what it still holds."""


@contextmanager
def followed_by(names: Sequence[str], *, quiet: bool) -> Iterator[Trackers]:
    """Around a run: its trackers, each loaded in a process of its own.

    Raises:
        UnknownNameError: no such tracker.
        UsageError: the library it needs is not installed.
        PluginError: it cannot be imported, or made.
    """
    followers = [Follower(entry, quiet=quiet) for entry in find(TRACKER, names).values()]
    try:
        for follower in followers:
            follower.loaded()
        yield Trackers(followers)
    finally:
        for follower in followers:
            follower.close()


class Trackers:
    """All that follow one run. What one of them does wrong is an :class:`ArchbenchWarning`, said once."""

    def __init__(self, followers: Sequence[Follower]) -> None:
        self._followers = followers

    def start(self, run_id: str, configuration: Mapping[str, Any], folder: Path) -> None:
        """The run begins, or goes on; see :class:`archbench.trackers.tracker.Tracker`."""
        self._order(LONGEST_START, "start", run_id, configuration, str(folder.resolve()))

    def finish(self, rows: Sequence[Mapping[str, Any]], status: Status) -> None:
        """It is over: with all its rows, or with those that it has."""
        self._order(LONGEST_FINISH, "finish", rows, status)

    def _order(self, limit: float, *order: Any) -> None:
        asked = [follower for follower in self._followers if not follower.lost]
        for follower in asked:
            follower.order(*order)
        for follower in asked:
            if (failure := follower.answer(limit, str(order[0]))["failure"]) is not None:
                follower.lost = True
                _warn(follower.name, **failure)


class Follower:
    """One tracker's process; ``lost`` when it has failed."""

    def __init__(self, entry: Entry, *, quiet: bool) -> None:
        self.name = entry.name
        self.lost = False
        self._entry = entry
        # -P: the working directory is not on the path, so nothing in it is imported unasked.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "archbench.trackers.process", entry.name, entry.source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env=clean_environment(),
            process_group=0,  # an interrupted run still tells its trackers so
        )

    def loaded(self) -> None:
        """Wait until the tracker is ready.

        Raises:
            UsageError: the library it needs is not installed.
            PluginError: it cannot be imported, or made.
        """
        answer = self.answer(LONGEST_START, "load")
        if answer["failure"] is not None:
            raise self._load_error(answer["failure"]["cause"], answer.get("missing"))

    def order(self, *order: Any) -> None:
        """Tell the process something; :meth:`answer` then says what became of it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, and the answer says so
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self, limit: float, during: str) -> dict[str, Any]:
        """The process's next answer; one of our own where it dies, or takes longer than ``limit`` seconds."""
        assert self._process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            end_group(self._process.pid)

        alarm = threading.Timer(limit, end)
        alarm.daemon = True
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        cause = f"it took longer than {limit:g} s" if late.is_set() else f"its process ended with exit code {code}"
        return {"failure": {"during": during, "cause": cause}}

    def close(self) -> None:
        """End the process, and all that it has started."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        end_group(self._process.pid)
        self._process.wait()

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
        f"tracker {name!r}: {happened}: {cause}. It follows this run no further; the run and its results are not "
        f"touched. Correct what it says before the next run, or leave the tracker out.",
        ArchbenchWarning,
        stacklevel=5,
    )
