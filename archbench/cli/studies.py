"""What ``archbench compare``, ``tune``, ``probe`` and ``scale`` share: they measure a plan and print its outcome."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.cli.output import print_json

if TYPE_CHECKING:
    from archbench.launch.choice import Choice
    from archbench.study.contract import Study

SET_BY_STUDIES = dict.fromkeys(
    ("architecture", "seed", "phases", "out", "weights"), "Leave it out: archbench run measures single runs"
)
"""Field of a run that a study sets -> what the user can do instead."""


def measured(
    name: str,
    study: Study[Any, Any, Any, Any],
    show: Callable[[Any, Path], None],
    *,
    track: list[str] | None,
    choice: Choice,
    out: str | None,
    json: bool,
    quiet: bool,
    describe: Callable[[Any], str] | None = None,
) -> None:
    """Measure a study, with progress on standard error, and print its outcome.

    Args:
        name: begins the folder's name, if ``out`` is None.
        show: prints the outcome as tables.
        track: names of the experiment trackers that follow each run.
        choice: of the launcher that takes the runs to machines.
        describe: a cell in a few words.
    """
    from archbench.cli.progress import StudyProgress
    from archbench.study.engine import conduct

    folder = Path(out) if out is not None else Path("results") / f"{name}-{study.plan.digest()}"
    command = shlex.join(["archbench", *sys.argv[1:]])
    with StudyProgress(folder, command, quiet=quiet, describe=describe) as progress:
        outcome = conduct(study, folder, progress, command, track or (), choice)
    if json:
        print_json(outcome.as_json())
    else:
        show(outcome, folder)


def default_jobs(run: dict[str, Any], *, on_gpu: bool) -> int:
    """Runs at a time: one on a GPU, otherwise one for each CPU thread."""
    from archbench.measure.machine import usable_cpus

    return 1 if on_gpu else run.get("threads") or len(usable_cpus())
