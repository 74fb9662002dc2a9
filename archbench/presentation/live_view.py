"""One live view of long work, on standard error: redrawn lines in a terminal, lines with the time elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Self, TextIO

from archbench.presentation.terminal import console, echo

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

SECONDS_BETWEEN_REDRAWS = 1.0
SECONDS_BETWEEN_HEARTBEATS = 60.0
"""Of silence in a log; a line that says something else postpones the next."""

UNBROKEN = "\xa0"
"""A space at which no line of a view ends."""

_SHORTEST_BAR = 14
"""Columns of a bar, with the gaps beside it; where there is less room, the times stand in a row of their own."""

_MOST_LINES = 4
"""Of one detail, before they are wrapped; a terminal shows as many in all as it has room for."""


@dataclass(frozen=True)
class Moment:
    """What a view shows now.

    Attributes:
        counts: what is done of how much.
        times: what has elapsed, and what is left.
        share: done, in [0, 1]; None if it is unknown.
        details: label -> lines, the most important first.
    """

    counts: str
    times: str
    share: float | None = None
    details: Mapping[str, Sequence[str]] = field(default_factory=dict)


def is_redrawn(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal in which lines can be redrawn. No variable makes a file one."""
    return stream.isatty() and not console(stream).is_dumb_terminal


class LiveView:
    """Shows what ``moment`` returns, while this is entered.

    Only rich's own control characters reach a terminal, and none a file. What this process or its children print to
    standard error meanwhile stands above the view.

    Args:
        moment: called in another thread, and often; nothing is shown while it returns None.
        shown: False shows nothing at all.
        redrawn: False for plain lines in a terminal too.
        heartbeat: seconds of silence after which a log gets a line.

    Attributes:
        redrawn: whether it is lines that are redrawn.
        still: redraw only when asked to, because what is timed meanwhile would be disturbed.
    """

    def __init__(
        self,
        moment: Callable[[], Moment | None],
        *,
        shown: bool = True,
        redrawn: bool = True,
        heartbeat: float = SECONDS_BETWEEN_HEARTBEATS,
    ) -> None:
        self._moment, self._stream, self._heartbeat = moment, sys.stderr, heartbeat
        self.shown = shown
        self.redrawn = shown and redrawn and is_redrawn(self._stream)
        self.still = False
        self._console = console(self._stream)
        self._live: Live | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self.redrawn:
            from rich.live import Live

            # Standard output stays untouched: programs may read it.
            self._live = Live(
                console=self._console,
                get_renderable=self._drawn,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                vertical_overflow="crop",
            )
            self._live.start()
        if self.shown:
            self._thread = threading.Thread(target=self._tick, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self._said = time.monotonic()
        with suppress(OSError):  # nobody reads on: the terminal is gone, or a pipe's other end
            if self._live is not None:
                self._live.console.print(text, soft_wrap=True)
            elif self.shown:
                log(text, self._stream)

    def refresh(self) -> None:
        """Redraw at once; a log gets nothing."""
        if self._live is not None:
            with suppress(OSError):
                self._live.refresh()

    def _tick(self) -> None:
        wait = SECONDS_BETWEEN_REDRAWS if self.redrawn else self._heartbeat
        while not self._ended.wait(wait):
            if self.redrawn:
                if not self.still:
                    self.refresh()
                continue
            silent = time.monotonic() - self._said
            wait = self._heartbeat - silent if silent < self._heartbeat else self._heartbeat
            if silent >= self._heartbeat and (now := self._moment()) is not None:
                details = [f"{label}: {'; '.join(lines)}" for label, lines in now.details.items() if lines]
                self.say("; ".join([now.counts, now.times, *details]).replace(UNBROKEN, " "))

    def _drawn(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        def line(text: str) -> Text:
            return Text(text, no_wrap=True, overflow="ellipsis")

        now = self._moment()
        if now is None:
            return Text("")
        width, room = self._console.width, max(1, self._console.height - 3)
        first = Table.grid(padding=(0, 2, 0, 0), expand=True)
        first.add_column(no_wrap=True)
        first.add_column(ratio=1)
        bar = line("") if now.share is None else ProgressBar(total=1.0, completed=now.share, width=None)
        beside = len(now.counts) + len(now.times) + _SHORTEST_BAR <= width
        if beside:
            first.add_column(no_wrap=True)
        first.add_row(line(now.counts), bar, *([line(now.times)] if beside else []))
        indent = max((len(label) for label in now.details), default=0) + 2
        drawn = [
            line(f"{label if number == 0 else '':<{indent}}{text}")
            for label, lines in now.details.items()
            for number, text in enumerate(_wrapped(lines, width - indent))
        ]
        return Group(first, *([] if beside else [line(now.times)]), *drawn[:room])


def log(text: str, stream: TextIO) -> None:
    """A line: on a terminal as it is, elsewhere with the time."""
    echo(text if stream.isatty() else f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {text}", stream=stream)


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    """At most :data:`_MOST_LINES` of them, each in as many rows as it needs; no name is broken."""
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"and {len(lines) - _MOST_LINES + 1} more"]
    wrap = TextWrapper(max(20, width), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False).wrap
    return [row.replace(UNBROKEN, " ") for text in lines for row in wrap(text)]
