"""What ``archbench run`` does with its runs, one or several: they are measured here or by a launcher, then shown."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from archbench.cli.output import say
from archbench.errors import ArchbenchError, StorageError
from archbench.presentation.terminal import echo

if TYPE_CHECKING:
    import pandas as pd

    from archbench.config import RunConfig
    from archbench.launch.choice import Choice


def measure_runs(runs: Sequence[RunConfig], choice: Choice | None, *, quiet: bool, json: bool, debug: bool) -> None:
    """Measure the runs, show each, and print a table of all. The first failure decides the exit code.

    Args:
        choice: of the launcher that takes the runs to machines; None: one after the other, in this process.

    Raises:
        ArchbenchError: it ended the only run.
        StorageError: results cannot be written, so later runs would be lost too.
        LauncherError: the launcher cannot be used.
        typer.Exit: one of several runs failed.
    """
    told = _Told(runs, quiet=quiet, json=json, debug=debug)
    if choice is None:
        for place, config in enumerate(runs):
            try:
                outcome: pd.DataFrame | ArchbenchError = _measured(config, quiet=quiet)
            except StorageError:
                raise
            except ArchbenchError as error:
                outcome = error
            told.ended(place, outcome)
    elif runs:
        from archbench.study.launched_runs import measure_launched

        measure_launched(runs, choice, told)
    told.finish()


class _Told:
    """What became of the runs: :class:`archbench.study.launched_runs.Watcher`."""

    def __init__(self, runs: Sequence[RunConfig], *, quiet: bool, json: bool, debug: bool) -> None:
        self._runs, self._quiet, self._json, self._debug = runs, quiet, json, debug
        self._failed: list[tuple[str, int]] = []
        self._finished: dict[int, pd.DataFrame] = {}
        self._only: ArchbenchError | None = None

    def note(self, text: str, *, needed: bool = False) -> None:
        from archbench.presentation.live_view import log

        if needed:
            echo(text, error=True)
        elif not self._quiet:
            log(text, sys.stderr)

    def ended(self, place: int, outcome: pd.DataFrame | ArchbenchError) -> None:
        config = self._runs[place]
        if not isinstance(outcome, ArchbenchError):
            show_run(outcome, config.out, json=self._json)
            self._finished[place] = outcome
            return
        if len(self._runs) == 1:
            self._only = outcome
            return
        if self._debug:
            echo("".join(traceback.format_exception(outcome)).rstrip(), error=True)
        say("Error", str(outcome))
        several_seeds = len({one.seed for one in self._runs}) > 1
        name = config.architecture + (f" seed {config.seed}" if several_seeds else "")
        self._failed.append((name, outcome.exit_code))

    def finish(self) -> None:
        """Print the table of all, and end with the first failure."""
        if self._only is not None:
            raise self._only
        if not self._json:
            from archbench.cli.summary import print_side_by_side

            print_side_by_side([self._finished[place] for place in sorted(self._finished)])
        if self._failed:
            failed = ", ".join(f"{name} (exit code {code})" for name, code in self._failed)
            echo(f"Failed: {failed}", error=True)
            raise typer.Exit(self._failed[0][1])


def _measured(config: RunConfig, *, quiet: bool) -> pd.DataFrame:
    from archbench.runs.run import run

    with saying_how_to_resume():
        return run(config, quiet=quiet)


def show_run(frame: pd.DataFrame, out: str, *, json: bool) -> None:
    """Print one run: a screen, or its rows."""
    from archbench.cli.summary import print_rows, print_summary

    (print_rows if json else print_summary)(frame, out)


@contextmanager
def saying_how_to_resume() -> Iterator[None]:
    """Print the note of an interrupted run, because Typer swallows it."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        for note in getattr(interruption, "__notes__", ()):  # none if no run had begun
            echo(note, error=True)
        raise
