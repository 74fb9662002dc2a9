"""How long commands show their progress: a bar on a terminal, a line for each cell elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import typer

from archbench.cli.output import say
from archbench.presentation.quantities import duration

if TYPE_CHECKING:
    from rich.progress import Progress

    from archbench.study.run_cells import RunCell

STAGES = {
    "pilot": "pilot",
    "tune": "learning rate",
    "seed": "fresh seed",
    "speed": "speed in turns",
    "cost": "context length",
}


class Ended(Protocol):
    """What became of a cell."""

    @property
    def outcome(self) -> str: ...
    @property
    def cause(self) -> str | None: ...
    @property
    def seconds(self) -> float: ...


class CompareProgress:
    """Progress on standard error, while this is entered: an :class:`archbench.study.contract.Progress`.

    Args:
        folder: of the comparison, to say how to go on with it.
        quiet: show none; why an architecture takes no part is said all the same.
        describe: a cell in a few words; None for the cells of a comparison.
    """

    def __init__(self, folder: Path, *, quiet: bool, describe: Callable[[Any], str] | None = None) -> None:
        self._folder, self._quiet, self._describe = folder, quiet, describe or describe_cell
        self._bar: Progress | None = None
        self._cells = self._known = self._measured = 0
        self._left = self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            typer.echo(f"The same command goes on with it: what is finished is kept in {self._folder}", err=True)

    def piloting(self, cells: int) -> None:
        if not self._quiet and sys.stderr.isatty():  # elsewhere nobody waits
            typer.echo(f"{cells} short runs first, to say how long it will take", err=True)

    def began(self, seconds: float, left: float, cells: int, known: int) -> None:
        self._cells, self._known, self._left, self._began = cells, known, left, time.monotonic()
        if self._quiet:
            return
        again = f", {known} of them known, about {duration(left)} left" if known else ""
        typer.echo(f"About {duration(seconds)} in all: {cells} runs{again}; in {self._folder}", err=True)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.description}"),
                console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=cells, completed=known)

    def finished(self, cell: Any, record: Ended) -> None:
        self._measured += 1
        if record.outcome == "failed":
            self.note(f"{self._describe(cell)} failed: {record.cause}")
        if self._quiet:
            return
        done = self._known + self._measured
        self._cells = max(self._cells, done)  # a search that goes on past its edge adds some
        text = f"{self._describe(cell)}: {record.outcome}, {record.seconds:.0f} s; {self._to_go()}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._cells, description=text)
        else:
            typer.echo(f"[{done}/{self._cells}] {text}", err=True)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say("Note", text)

    def _to_go(self) -> str:
        """What is left, as predicted, corrected by how well that has fitted so far."""
        share = self._measured / max(1, self._cells - self._known)
        elapsed = time.monotonic() - self._began
        left = (1 - share) * (self._left + elapsed / share) / 2 if share > 0.1 else self._left - elapsed
        return f"about {duration(max(0.0, left))} left"


def describe_cell(cell: RunCell) -> str:
    """A cell in a few words."""
    detail = {
        "tune": f" × {cell.factor:g}, seed {cell.config.seed}" if cell.factor is not None else "",
        "seed": f" {cell.config.seed}",
        "speed": f", sweep {(cell.block or 0) + 1}",
        "cost": f" {cell.context_length:,}",
    }.get(cell.stage, "")
    return f"{cell.architecture}, {STAGES[cell.stage]}{detail}"
