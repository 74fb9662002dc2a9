"""Progress of long work: :class:`archbench.presentation.live_view.LiveView` of a study, of checks, of any steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from archbench.cli.output import say
from archbench.interruption import continued
from archbench.presentation.live_view import UNBROKEN, LiveView, Moment
from archbench.presentation.quantities import counted, duration
from archbench.presentation.step_view import StepView
from archbench.presentation.terminal import echo

if TYPE_CHECKING:
    from archbench.study.contract import Quality
    from archbench.study.outcome import Record
    from archbench.study.run_cells import RunCell
    from archbench.study.time_left import TimeLeft
    from archbench.testing.evaluation import Result
    from archbench.testing.isolation import Claim

STAGES = {
    "pilot": "pilot",
    "tune": "learning rate",
    "seed": "fresh seed",
    "speed": "speed in turns",
    "cost": "context length",
}
TIMED = ("speed", "cost")
"""Stages whose runs are timed and compared: nothing is redrawn meanwhile."""


class StudyProgress:
    """Progress of a study, while this is entered: an :class:`archbench.study.contract.Progress`.

    Args:
        folder: of the study.
        command: resumes it.
        quiet: show only notes and failed cells.
        describe: a cell in a few words; None for the cells of a comparison.
    """

    def __init__(
        self, folder: Path, command: str, *, quiet: bool, describe: Callable[[Any], str] | None = None
    ) -> None:
        self._continuation = f"Finished runs are kept in {folder}. Continue with: {command}"
        self._folder, self._continued = folder, continued(self._continuation)
        self._describe = describe or describe_cell
        self._view = LiveView(self._moment, shown=not quiet)
        self._cells = self._done = self._failed = 0
        self._left: TimeLeft | None = None
        self._began = time.monotonic()
        self._running: dict[str, tuple[str, float]] = {}
        self._best: dict[str, dict[str, Quality]] = {}
        """Among what -> architecture -> its best cell, the newest last."""

    def __enter__(self) -> Self:
        self._continued.__enter__()
        self._view.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._view.__exit__()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            echo(self._continuation, error=True)
        self._continued.__exit__(None, None, None)

    def piloting(self, cells: int) -> None:
        self._cells = cells
        self._view.say(f"{counted(cells, 'short run')} first, to predict how long it will take")

    def began(self, seconds: float, left: TimeLeft, cells: int, known: int) -> None:
        self._left, self._done, self._failed = left, known, 0
        again = f", {known} of them known, about {duration(left.seconds())} left" if known else ""
        self._view.say(f"About {duration(seconds)} in all: {counted(cells, 'run')}{again}; in {self._folder}")

    def started(self, cell: Any) -> None:
        self._running[cell.key] = self._describe(cell), time.monotonic()
        self._view.still = cell.stage in TIMED
        self._view.refresh()

    def known(self, cell: Any, quality: Quality | None) -> None:
        if quality is not None:
            best = self._best.setdefault(quality.among, {})
            before = best.get(cell.architecture, quality)
            worse = quality.value < before.value if quality.higher_is_better else quality.value > before.value
            best[cell.architecture] = before if worse else quality

    def finished(self, cell: Any, record: Record, quality: Quality | None) -> None:
        self._running.pop(cell.key, None)
        self.known(cell, quality)
        failed = record.outcome == "failed"
        self._failed += failed
        self._done += not failed
        ended = self._done + self._failed
        if failed and self._left is not None:  # of a pilot, the engine says it
            self.note(f"{self._describe(cell)} failed: {record.cause}")
        if not self._view.redrawn:
            found = "" if quality is None else f", {_shown(quality)} {quality.unit}"
            text = f"{self._describe(cell)}: {record.outcome}, {record.seconds:.0f} s{found}"
            place = f"pilot {ended} of {self._cells}:" if self._left is None else f"[{ended}/{self._total()}]"
            self._view.say(f"{place} {text}; {self._to_go()}")
        self._view.refresh()

    def note(self, text: str) -> None:
        if self._view.shown:
            self._view.say(f"Note: {text}")
        else:
            say("Note", text)

    def _moment(self) -> Moment | None:
        if not (total := self._total()):
            return None
        now, running = time.monotonic(), list(self._running.values())
        waiting = self._left is None
        return Moment(
            f"{'pilots: ' if waiting else ''}{self._done} done, {len(running)} running, {self._failed} failed"
            f" of {total}",
            f"{duration(now - self._began)} so far, {self._to_go()}",
            (self._done + self._failed) / total,
            {
                "running": [
                    f"{text}, {'timed, so not redrawn' if self._view.still else duration(now - began)}"
                    for text, began in running
                ],
                "best": [_ranked(among, dict(found)) for among, found in reversed(list(self._best.items()))],
            },
        )

    def _total(self) -> int:
        """A search that continues past its edge adds some."""
        return self._cells if self._left is None else self._done + self._failed + self._left.cells

    def _to_go(self) -> str:
        if self._left is None:
            return "time left not known yet"
        guess = " (a guess)" if self._left.is_guess else ""
        return f"about {duration(self._left.seconds())} left{guess}"


class CheckProgress(StepView):
    """Progress of ``archbench check``; a log gets a line for each result."""

    def started(self, claim: Claim, number: int, count: int) -> None:
        """``claim`` is being checked, the ``number``-th of ``count``."""
        self.begun(claim.name, number, count)

    def ended(self, result: Result) -> None:
        """A check has ended."""
        if not self.view.redrawn:
            self.view.say(f"{result.name:<18}{result.status:<18}{result.seconds:.1f} s")


def _shown(quality: Quality) -> str:
    return f"{quality.value:.4f}" if quality.unit != "accuracy" else f"{quality.value:.3f}"


def _ranked(among: str, found: dict[str, Quality]) -> str:
    """The best of each architecture, the best of all first."""
    one = next(iter(found.values()))
    ranked = sorted(found.items(), key=lambda pair: pair[1].value, reverse=one.higher_is_better)
    return f"{one.unit}, {among}: {', '.join(f'{name}{UNBROKEN}{_shown(best)}' for name, best in ranked)}"


def describe_cell(cell: RunCell) -> str:
    """A cell of a comparison in a few words."""
    detail = {
        "tune": f" × {cell.factor:g}, seed {cell.config.seed}" if cell.factor is not None else "",
        "seed": f" {cell.config.seed}",
        "speed": f", sweep {(cell.block or 0) + 1}",
        "cost": f" {cell.context_length:,}",
    }.get(cell.stage, "")
    return f"{cell.architecture}, {STAGES[cell.stage]}{detail}"
