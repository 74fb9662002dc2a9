"""``archbench status`` and ``archbench cancel``: a study that is measured here, elsewhere, or by nobody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archbench.cli.options import Json
from archbench.cli.output import print_json, say
from archbench.errors import storing
from archbench.presentation.quantities import counted, duration
from archbench.presentation.tables import Column, table
from archbench.presentation.terminal import echo, show

if TYPE_CHECKING:
    from archbench.study.status import StudyStatus

Folder = Annotated[str, typer.Argument(help="Folder of the study")]


def status(folder: Folder, json: Json = False) -> None:
    """What became of a study's runs: done, failed, running (where, for how long), queued, waiting or lost; time left.

    It may be asked on any machine that sees the folder, also when nothing works on the study any more.
    """
    from archbench.study.status import as_json, study_status

    found = study_status(Path(folder))
    if json:
        print_json(as_json(found))
        return
    _print(found)


def cancel(folder: Folder) -> None:
    """Take back a study's orders, and end the processes that work on it. What is measured is kept.

    The command that began the study continues it.
    """
    from archbench.study.status import cancel_study

    with storing(folder, "Choose a folder that can be written"):
        taken, left = cancel_study(Path(folder))
    say("Cancelled", f"{counted(taken, 'order')} taken back")
    for one in left:
        say("Note", f"{one} has not ended yet: it does within seconds, or when it can read the folder again")


def _print(found: StudyStatus) -> None:
    from archbench.study.status import PHASES

    counts = [f"{found.count(phase)} {phase}" for phase in PHASES if found.count(phase)]
    total = counted(len(found.cells), "run")
    echo(f"{found.noun} in {found.folder}: {total}, {', '.join(counts)}" if counts else f"{found.noun}: pilots first")
    columns = (
        Column("architecture", "name"), Column("for", "text"), Column("phase", "verdict"),
        Column("launcher", "name", priority=2), Column("host", "name", priority=1),
        Column("for how long", show=duration), Column("why", "text", priority=3),
    )  # fmt: skip
    shown = [one for one in found.cells if one.phase in ("running", "queued", "lost", "failed")]
    rows = [
        (one.cell.architecture, one.cell.sort, one.phase, one.launcher, one.host, one.seconds, one.cause)
        for one in shown
    ]
    if rows:
        show(table("status", "", columns, rows))
    workers = ", ".join(f"{one} ({one.launcher})" for one in found.workers)
    if found.finished:
        echo("It is finished.")
    elif found.seconds_left is not None:
        echo(f"About {duration(found.seconds_left)} left." + (f" Working on it: {workers}." if workers else ""))
    elif workers:
        echo(f"Working on it: {workers}.")
    else:
        echo("Nothing works on it." + (f" Continue with: {found.command}" if found.command else ""))
