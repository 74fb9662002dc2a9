"""The child process of one tracker (:mod:`archbench.trackers.following`).

There it cannot disturb what is measured: its threads, memory and random numbers are its own, and only it waits for the
network. It answers when it is loaded and after each order (start, finish); in between it reads, once a second, what
training has written. When the run's process is gone, it finishes by itself.
"""

from __future__ import annotations

import os
import queue
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, NonNegativeInt

from archbench.errors import one_line
from archbench.files.loader import read_model
from archbench.files.writing import write_text
from archbench.hookspecs import TRACKER_GROUP
from archbench.trackers.feed import FeedReader
from archbench.trackers.tracker import Tracker

if TYPE_CHECKING:
    from archbench.child.entry import Parent

SECONDS_BETWEEN_READINGS = 1.0
SECONDS_WITHOUT_PARENT = 60.0
"""Time for a tracker to finish when the run's process is gone."""


class _Tracked(BaseModel):
    """How many bytes of the feed a tracker has read."""

    position: NonNegativeInt


class Session:
    """A tracker, its run, and its failure if it has failed."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.failure: dict[str, str] | None = None
        self._name = name
        self._tracker = tracker
        self._reader: FeedReader | None = None

    def start(self, run_id: str, configuration: dict[str, Any], folder: str) -> None:
        self._record = Path(folder) / f"tracked-{self._name}.json"
        position = 0
        if self._record.exists():
            position = read_model(
                _Tracked, self._record, next_step="Delete it; the tracker then reads all again"
            ).position
        self._reader = FeedReader(Path(folder), position)
        self._tracker.start(run_id, configuration, Path(folder))

    def log(self) -> None:
        """Log what is new, and record the position: a resumed run continues there."""
        if self._reader is None:
            return
        before = self._reader.position
        for step, tokens, values in self._reader.read():
            self._tracker.log(step, tokens, values)
        if self._reader.position != before:
            write_text(self._record, _Tracked(position=self._reader.position).model_dump_json())

    def finish(self, rows: list[dict[str, Any]], status: Any) -> None:
        if self._reader is not None:
            self._tracker.finish(rows, status)

    def attempt(self, name: str, *arguments: Any) -> None:
        """Call one of the methods above and keep its error; do nothing after a failure."""
        if self.failure is not None:
            return
        try:
            getattr(self, name)(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a plugin's code: the run's process warns of it
            self.failure = {"during": name, "cause": one_line(error)}


def main(parent: Parent, request: dict[str, Any]) -> None:
    """Follow one run."""
    if hasattr(os, "nice"):
        os.nice(10)  # what is measured goes first
    orders: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(parent, orders), daemon=True).start()
    name = request["name"]
    try:
        session = Session(name, metadata.EntryPoint(name, request["source"], TRACKER_GROUP).load()())
    except (Exception, SystemExit) as error:  # noqa: BLE001  a plugin's code, as above
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        parent.send({"failure": {"during": "load", "cause": one_line(error)}, "missing": missing})
        return
    parent.send({"failure": None})
    finished = False
    while not finished:
        try:
            order = orders.get(timeout=SECONDS_BETWEEN_READINGS)
        except queue.Empty:
            session.attempt("log")
            continue
        action, *arguments = order if order is not None else ("finish", [], "interrupted")
        if finished := action == "finish":
            session.attempt("log")
        session.attempt(action, *arguments)
        if order is not None:
            parent.send({"failure": session.failure})


def _read_orders(parent: Parent, orders: queue.SimpleQueue[list[Any] | None]) -> None:
    while (order := parent.receive()) is not None:
        orders.put(order)
    orders.put(None)
    # A tracker that finishes in time ends the process, and this thread with it.
    threading.Event().wait(SECONDS_WITHOUT_PARENT)
    os._exit(1)
