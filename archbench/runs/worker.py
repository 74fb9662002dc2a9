"""The child process of one phase (:mod:`archbench.runs.phase`): it sends its rows, or its error."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, get_args

import torch

from archbench.config import PhaseName
from archbench.errors import one_line
from archbench.kernels import attention_backend
from archbench.plugin.discovery import Entry
from archbench.runs.check import run_check
from archbench.runs.conformance import CHECK
from archbench.runs.device import measuring
from archbench.runs.device_watch import device_watched
from archbench.runs.folder import RunFolder, open_run
from archbench.runs.positions import run_positions
from archbench.runs.quality import run_quality
from archbench.runs.ranks import GROUP, LOST_PEER, SHARED, device_of_rank
from archbench.runs.room import require_room
from archbench.runs.rows import Rows
from archbench.runs.serving import run_serve
from archbench.runs.speed import run_decode, run_prefill
from archbench.runs.train import run_train
from archbench.testing.global_state import watched
from archbench.training.distribution import Ranks, from_a_peer, join, leave

if TYPE_CHECKING:
    from archbench.child.entry import Parent


class Phase(Protocol):
    """Adds its measurements to ``rows``."""

    def __call__(self, run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None: ...


class SharedPhase(Protocol):
    """A phase that several ranks call; the first one's rows are the run's."""

    def __call__(self, run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool, ranks: Ranks) -> None: ...


PHASES: dict[PhaseName, Phase] = {
    "train": run_train,
    "quality": run_quality,
    "positions": run_positions,
    "prefill": run_prefill,
    "decode": run_decode,
    "serve": run_serve,
}
SHARED_PHASES: dict[str, SharedPhase] = {"train": run_train, "quality": run_quality, "positions": run_positions}
assert SHARED_PHASES.keys() == SHARED
assert set(PHASES) == set(get_args(PhaseName)), "PhaseName in archbench/config.py and PHASES name other phases"


def main(parent: Parent, request: dict[str, Any]) -> None:
    """Measure the phase ``request["phase"]`` of a run."""
    # End copies of this process that a plugin forks: they would measure too, and write into the same folder.
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=lambda: os._exit(1))
    run, name, quiet = open_run(request["out"], request["run_id"]), request["phase"], request["quiet"]
    if GROUP in request:
        place = device_of_rank(run.config.device, os.environ)
        own = run.config.override(nproc=request["nproc"], parallel=request["parallel"], device=place)
        run = dataclasses.replace(run, config=own)
    with attention_backend(run.config.attention), measuring(name, run.config) as (device, rows):
        require_room(run, device)
        if name == CHECK:  # one of the checks finds what a plugin changes in the process
            run_check(run, device, rows, parent.send, quiet=quiet)
        else:
            package, version = run.facts["plugin_package"], run.facts["plugin_version"]
            plugin = Entry(run.config.architecture, package, version, package).culprit
            first = GROUP not in request or os.environ["RANK"] == "0"
            with watched(f"{plugin}, in phase {name}"), device_watched(device, rows, first=first, quiet=quiet):
                if GROUP in request:
                    _measure_together(name, run, device, rows, request[GROUP], parent, quiet=quiet)
                else:
                    PHASES[name](run, device, rows, quiet=quiet)
    parent.send({"rows": rows.finished(), "cpu_seconds": time.process_time()})


def _measure_together(
    phase: str, run: RunFolder, device: torch.device, rows: Rows, group: str, parent: Parent, *, quiet: bool
) -> None:
    """Measure a phase as one of several ranks."""
    try:
        ranks = join(os.environ, group, device, run.config.parallel)
        SHARED_PHASES[phase](run, device, rows, quiet=quiet, ranks=ranks)
        ranks.wait()
    except Exception as error:
        if not from_a_peer(error):
            raise
        parent.send({LOST_PEER: one_line(error)})
        os._exit(0)  # a group that has lost a rank can hang in its end
    leave()
