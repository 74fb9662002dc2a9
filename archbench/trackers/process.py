"""One tracker in a process of its own: ``python -P -m archbench.trackers.process NAME OBJECT``.

There it can disturb nothing that is measured: its threads, memory and random numbers are its own, and it waits for the
network alone. It takes orders as lines of JSON on standard input and answers each on standard output: load (without an
order), start, finish. In between it looks once a second for what training has written. Where its standard input ends,
so has the program that gave the orders, and it finishes by itself.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

from archbench.errors import one_line
from archbench.hookspecs import TRACKER_GROUP
from archbench.trackers.feed import FeedReader
from archbench.trackers.tracker import Tracker

SECONDS_BETWEEN_READINGS = 1.0
SECONDS_WITHOUT_ORDERS = 60.0
"""Given to a tracker for finishing when the program that gave the orders is gone."""


class Following:
    """A tracker, the run it follows, and what has gone wrong with it, if anything has."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.failure: dict[str, str] | None = None
        self._name = name
        self._tracker = tracker
        self._reader: FeedReader | None = None

    def start(self, run_id: str, configuration: dict[str, Any], folder: str) -> None:
        self._record = Path(folder) / f"tracked-{self._name}.json"
        position = json.loads(self._record.read_text())["position"] if self._record.exists() else 0
        self._reader = FeedReader(Path(folder), position)
        self._tracker.start(run_id, configuration, Path(folder))

    def log(self) -> None:
        """Pass on what is new, and remember how far that was: a resumed run goes on there."""
        if self._reader is None:
            return
        before = self._reader.position
        for step, tokens, values in self._reader.read():
            self._tracker.log(step, tokens, values)
        if self._reader.position != before:
            self._record.write_text(json.dumps({"position": self._reader.position}))

    def finish(self, rows: list[dict[str, Any]], status: Any) -> None:
        if self._reader is not None:
            self._tracker.finish(rows, status)

    def attempt(self, name: str, *arguments: Any) -> None:
        """Call one of the above, unless something has failed before; keep what it raises."""
        if self.failure is not None:
            return
        try:
            getattr(self, name)(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the boundary of the process: the program warns of it
            self.failure = {"during": name, "cause": one_line(error)}


def main(arguments: list[str]) -> int:
    """Follow one run; 0, whatever becomes of it: the answers say."""
    name, place = arguments
    answers = os.fdopen(os.dup(1), "w")
    orders: queue.Queue[list[Any] | None] = queue.Queue()
    threading.Thread(target=_read_orders, args=(os.dup(0), orders), daemon=True).start()
    os.dup2(2, 1)  # what the tracker prints is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # and nobody is there to answer its questions
    if hasattr(os, "nice"):
        os.nice(10)  # what is measured goes first

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        following = Following(name, metadata.EntryPoint(name, place, TRACKER_GROUP).load()())
    except (Exception, SystemExit) as error:  # noqa: BLE001  as above
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        answer(failure={"during": "load", "cause": one_line(error)}, missing=missing)
        return 0
    answer(failure=None)
    while True:
        try:
            order = orders.get(timeout=SECONDS_BETWEEN_READINGS)
        except queue.Empty:
            following.attempt("log")
            continue
        if order is None or order[0] == "finish":
            following.attempt("log")
            following.attempt("finish", *(order[1:] if order is not None else ([], "interrupted")))
            if order is not None:
                answer(failure=following.failure)
            return 0
        following.attempt(*order)
        answer(failure=following.failure)


def _read_orders(source: int, orders: queue.Queue[list[Any] | None]) -> None:
    with os.fdopen(source) as lines:
        for line in lines:
            orders.put(json.loads(line))
    orders.put(None)
    # Whoever finishes in time has left by then, and this thread with it.
    threading.Event().wait(SECONDS_WITHOUT_ORDERS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
