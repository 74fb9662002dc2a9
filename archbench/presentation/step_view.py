"""A live view of steps that come one after the other: checks, the phases of a run, rounds of timing."""

from __future__ import annotations

import sys
import time
from typing import Self

from archbench.presentation.live_view import LiveView, Moment
from archbench.presentation.quantities import duration


class StepView:
    """Shows the step at work, while this is entered.

    Args:
        shown: False shows nothing.
        json: JSON lines go to standard output meanwhile; in a terminal, changing lines would run into them.
        still: what is timed meanwhile would be disturbed; a line says what is at work.

    Attributes:
        number: of the step at work, from 1; 0 before the first.
    """

    def __init__(self, *, shown: bool, json: bool = False, still: bool = False) -> None:
        self._text, self.number, self._count = "loading", 0, 0
        self._began = time.monotonic()
        self._end: float | None = None
        self.view = LiveView(self._moment, shown=shown, redrawn=not still and not (json and sys.stdout.isatty()))

    def __enter__(self) -> Self:
        self.view.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.view.__exit__()

    def begun(self, text: str, number: int, count: int) -> None:
        """The step ``text`` has begun, the ``number``-th of ``count``."""
        self._text, self.number, self._count = text, number, count
        if self._end is not None and not self.view.redrawn:
            self.view.say(self._moment().counts)
        self.view.refresh()

    def predict(self, seconds: float) -> None:
        """All steps together take about so long from now; a log then has a line for each."""
        self._end = time.monotonic() + seconds

    def at(self, text: str) -> None:
        """The step ``text`` has begun, of a number that nobody knows; a log gets a line."""
        self._text = text
        if self.view.redrawn:
            self.view.refresh()
        else:
            self.view.say(text)

    def _moment(self) -> Moment:
        elapsed = time.monotonic() - self._began
        if not self._count:
            return Moment(self._text, f"{duration(elapsed)} so far")
        done = self.number - 1
        to_go = elapsed / done * (self._count - done) if done else 0.0
        if self._end is not None:
            to_go = self._end - time.monotonic()
        left = f", about {duration(to_go)} left" if to_go > 0 else ""
        counts = f"{self._text} ({self.number} of {self._count})"
        return Moment(counts, f"{duration(elapsed)} so far{left}", done / self._count)
