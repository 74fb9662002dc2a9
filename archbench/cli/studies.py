"""What ``archbench compare``, ``tune``, ``probe`` and ``scale`` share: they measure a plan and print its outcome."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.cli.options import Gpus, Json, Launcher, LauncherSet, Out, Quiet, Track, launcher_choice
from archbench.cli.output import print_json

if TYPE_CHECKING:
    from archbench.launch.choice import Choice
    from archbench.study.contract import Study

SET_BY_STUDIES = dict.fromkeys(
    ("architecture", "seed", "phases", "out", "weights"), "Leave it out: archbench run measures single runs"
)
"""Field of a run that a study sets -> what the user can do instead."""


@dataclass(frozen=True)
class Conduct:
    """How a study is measured and shown; each field is an option of the commands that have a parameter ``conduct``."""

    track: Track = None
    launcher: Launcher = "local"
    launcher_set: LauncherSet = None
    gpus: Gpus = None
    out: Out = None
    json_: Json = False
    quiet: Quiet = False

    @cached_property
    def choice(self) -> Choice:
        """The launcher that takes the runs to machines.

        Raises:
            UsageError: as :func:`launcher_choice`.
        """
        return launcher_choice(self.launcher, self.launcher_set, self.gpus)

    def measure(
        self,
        name: str,
        study: Study[Any, Any, Any, Any],
        show: Callable[[Any, Path], None],
        describe: Callable[[Any], str] | None = None,
    ) -> None:
        """Measure a study, with progress on standard error, and print its outcome.

        Args:
            name: begins the folder's name, if none is given.
            show: prints the outcome as tables.
            describe: a cell in a few words.
        """
        from archbench.cli.progress import StudyProgress
        from archbench.study.engine import conduct

        folder = Path(self.out) if self.out is not None else Path("results") / f"{name}-{study.plan.digest()}"
        command = shlex.join(["archbench", *sys.argv[1:]])
        with StudyProgress(folder, command, quiet=self.quiet, describe=describe) as progress:
            outcome = conduct(study, folder, progress, command, self.track or (), self.choice)
        if self.json_:
            print_json(outcome.as_json())
        else:
            show(outcome, folder)


def default_jobs(run: dict[str, Any], *, on_gpu: bool) -> int:
    """Runs at a time: one on a GPU, otherwise one for each CPU thread."""
    from archbench.measure.machine import usable_cpus

    return 1 if on_gpu else run.get("threads") or len(usable_cpus())
