"""Progress on standard error: a line that changes on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from archbench.cli.output import say
from archbench.presentation.quantities import duration
from archbench.presentation.terminal import console, echo

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from archbench.study.outcome import Record
    from archbench.study.run_cells import RunCell
    from archbench.testing.evaluation import Result
    from archbench.testing.isolation import Claim

STAGES = {
    "pilot": "pilot",
    "tune": "learning rate",
    "seed": "fresh seed",
    "speed": "speed in turns",
    "cost": "context length",
}


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
        self._folder, self._command = folder, command
        self._quiet, self._describe = quiet, describe or describe_cell
        self._bar: Progress | None = None
        self._cells = self._known = self._measured = 0
        self._left = self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            echo(f"Finished runs are kept in {self._folder}. Continue with: {self._command}", error=True)

    def piloting(self, cells: int) -> None:
        if not self._quiet and sys.stderr.isatty():  # elsewhere nobody waits
            echo(f"{cells} short runs first, to predict how long it will take", error=True)

    def began(self, seconds: float, left: float, cells: int, known: int) -> None:
        self._cells, self._known, self._left, self._began = cells, known, left, time.monotonic()
        if self._quiet:
            return
        again = f", {known} of them known, about {duration(left)} left" if known else ""
        echo(f"About {duration(seconds)} in all: {cells} runs{again}; in {self._folder}", error=True)
        if sys.stderr.isatty():
            from rich.progress import BarColumn, TextColumn

            self._bar = _bar(
                BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.description}", markup=False)
            )
            self._bar.add_task("", total=cells, completed=known)

    def finished(self, cell: Any, record: Record) -> None:
        self._measured += 1
        if record.outcome == "failed":
            self.note(f"{self._describe(cell)} failed: {record.cause}")
        if self._quiet:
            return
        done = self._known + self._measured
        self._cells = max(self._cells, done)  # a search that continues past its edge adds some
        text = f"{self._describe(cell)}: {record.outcome}, {record.seconds:.0f} s; {self._to_go()}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=self._cells, description=text)
        else:
            echo(f"[{done}/{self._cells}] {text}", error=True)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            say("Note", text)

    def _to_go(self) -> str:
        """The time left: the prediction, corrected by how well it has fitted so far."""
        share = self._measured / max(1, self._cells - self._known)
        elapsed = time.monotonic() - self._began
        left = (1 - share) * (self._left + elapsed / share) / 2 if share > 0.1 else self._left - elapsed
        return f"about {duration(max(0.0, left))} left"


class CheckProgress:
    """Progress of ``archbench check``, while this is entered.

    Args:
        quiet: show none.
        json: JSON lines go to standard output meanwhile; on a terminal, a changing line would run into them.
    """

    def __init__(self, *, quiet: bool, json: bool) -> None:
        changing = not quiet and sys.stderr.isatty() and not (json and sys.stdout.isatty())
        self._plain = not quiet and not changing
        self._bar: Progress | None = None
        if changing:
            from rich.progress import SpinnerColumn, TextColumn

            self._bar = _bar(SpinnerColumn(), TextColumn("{task.description}", markup=False))
            self._bar.add_task("loading")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begun(self, claim: Claim, number: int, count: int) -> None:
        """``claim`` is being checked, the ``number``-th of ``count``."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=f"{claim.name} ({number} of {count})")

    def ended(self, result: Result) -> None:
        """A check has ended."""
        if self._plain:
            echo(f"{result.name:<18}{result.status:<18}{result.seconds:.1f} s", error=True)


def _bar(*columns: ProgressColumn) -> Progress:
    """A started line on standard error. Rich would take standard output over as well, which programs may read."""
    from rich.progress import Progress

    screen = console(sys.stderr)
    bar = Progress(*columns, console=screen, transient=True, redirect_stdout=False, redirect_stderr=False)
    bar.start()
    return bar


def describe_cell(cell: RunCell) -> str:
    """A cell of a comparison in a few words."""
    detail = {
        "tune": f" × {cell.factor:g}, seed {cell.config.seed}" if cell.factor is not None else "",
        "seed": f" {cell.config.seed}",
        "speed": f", sweep {(cell.block or 0) + 1}",
        "cost": f" {cell.context_length:,}",
    }.get(cell.stage, "")
    return f"{cell.architecture}, {STAGES[cell.stage]}{detail}"
