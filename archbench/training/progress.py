"""Progress of training on stderr: a bar in a terminal, plain lines with the time elsewhere, or nothing.

It writes at most a few times a second, and never inside a timed step.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TextIO

from archbench.presentation.live_view import is_redrawn, log
from archbench.presentation.quantities import duration
from archbench.presentation.terminal import console

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_SECONDS_BETWEEN_REDRAWS = 0.25
_SECONDS_BETWEEN_LINES = 10.0
_MOST_SECONDS_BETWEEN_LINES = 60.0
"""In a long training, whose lines become rarer."""


class Progress:
    """Progress of one training.

    Args:
        style: ``auto`` draws a bar if ``stream`` is a terminal, otherwise it writes plain lines.
        label: name of what is training, as in ``gpt1 nano``.
        stream: stderr by default.
        interval: seconds between two plain lines (10 by default) or two redraws of the bar (0.25).
    """

    def __init__(
        self,
        style: Literal["auto", "bar", "plain", "silent"] = "auto",
        *,
        label: str = "training",
        stream: TextIO | None = None,
        interval: float | None = None,
    ) -> None:
        self.label = label
        self.stream = stream if stream is not None else sys.stderr
        if style == "auto":
            style = "bar" if is_redrawn(self.stream) else "plain"
        self.style = style
        default = _SECONDS_BETWEEN_REDRAWS if style == "bar" else _SECONDS_BETWEEN_LINES
        self.interval = default if interval is None else interval
        self._bar: RichProgress | None = None

    def start(self, *, progress: float, tokens: int) -> None:
        """Training begins, with the share ``progress`` in [0, 1] of its budget and ``tokens`` done before a resume."""
        self._started = self._shown = time.monotonic()
        self._first_progress, self._first_tokens = progress, tokens
        if self.style == "bar":
            self._open_bar(progress)

    def update(self, *, progress: float, step: int, tokens: int, loss: float) -> None:
        """``step`` updates are done; shown after :attr:`interval`, and for the last one."""
        if self.style == "silent":
            return
        now = time.monotonic()
        elapsed = max(now - self._started, 1e-9)
        rare = 0.0 if self._bar is not None else min(elapsed / 20, _MOST_SECONDS_BETWEEN_LINES) * bool(self.interval)
        if now - self._shown < max(self.interval, rare) and progress < 1.0:
            return
        self._shown = now
        speed = (tokens - self._first_tokens) / elapsed
        spent = progress - self._first_progress
        left = elapsed / spent * (1.0 - progress) if spent > 0 else float("inf")
        text = f"step {step:,}  loss {loss:.3f}  {speed:,.0f} tokens/s  ETA {duration(left)}"
        if self._bar is None:
            self._write(f"{self.label} {progress:4.0%}  {text}")
        else:
            self._bar.update(self._bar.task_ids[0], completed=progress, text=text)
            with suppress(OSError):
                self._bar.refresh()

    def validated(self, *, step: int, loss: float) -> None:
        """A validation after ``step`` updates gave ``loss``, nats/token."""
        if self.style != "silent":
            self._write(f"{self.label}: validation loss {loss:.4f} nats/token after step {step:,}")

    def note(self, text: str) -> None:
        """Write a line."""
        if self.style != "silent":
            self._write(f"{self.label}: {text}")

    def close(self) -> None:
        """Training is over: remove the bar."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()
            self._bar = None

    def _write(self, line: str) -> None:
        with suppress(OSError):  # nobody reads on: the terminal is gone, or a pipe's other end
            if self._bar is not None:
                self._bar.console.print(line)
            else:
                log(line, self.stream)

    def _open_bar(self, progress: float) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        # No refreshing thread: it would compete with the timed step.
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console(self.stream),
            auto_refresh=False,
            redirect_stdout=False,
            expand=True,
        )
        self._bar.add_task(self.label, total=1.0, text="")
        self._bar.update(self._bar.task_ids[0], completed=progress)
        self._bar.start()
