"""One phase in a process of its own: ``python -P -m archbench.phases.worker OUT RUN_ID PHASE``.

Its rows go to the run's folder; an error goes there too, for the runner to raise again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import nullcontext, suppress
from typing import Any, Protocol

import torch

from archbench.errors import ArchbenchError, PhaseError, one_line
from archbench.kernels import attention_backend
from archbench.phases.check import run_check
from archbench.phases.folder import RunFolder, open_run, write_text
from archbench.phases.positions import run_positions
from archbench.phases.process import measuring
from archbench.phases.quality import run_quality
from archbench.phases.rows import Rows
from archbench.phases.speed import run_decode, run_prefill
from archbench.phases.train import run_train
from archbench.plugin.discovery import Entry
from archbench.processes import end_with_parent
from archbench.testing.global_state import watched


class Phase(Protocol):
    def __call__(self, run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None: ...


PHASES: dict[str, Phase] = {
    "check": run_check,
    "train": run_train,
    "quality": run_quality,
    "positions": run_positions,
    "prefill": run_prefill,
    "decode": run_decode,
}


def main(arguments: list[str]) -> int:
    """Run one phase; the exit code is the error's, 0 without one."""
    out, run_id, name, verbosity = arguments
    end_with_parent()
    # A copy of this process that a plugin forks would measure beside it, and write into the same folder.
    os.register_at_fork(after_in_child=lambda: os._exit(1))
    run = open_run(out, run_id)
    try:
        run.write_rows(name, _measure(run, name, quiet=verbosity == "quiet"))
    except ArchbenchError as error:
        return _leave(error, run, name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  the boundary of the process: it reaches the user as a PhaseError
        failure = PhaseError(
            f"phase {name} of run {run_id} ({run.config.architecture})",
            f"it failed with {one_line(error)}",
            "Run again with --debug for the traceback",
        )
        return _leave(failure, run, name)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # the runner was interrupted too, and says so
    return 0


def _leave(error: ArchbenchError, run: RunFolder, name: str) -> int:
    """Leave the error in the run's folder for the runner, or say it where the disk is full; its exit code."""
    try:
        content = json.dumps({**error.as_dict(), "traceback": traceback.format_exc()})
        write_text(run.path / f"error-{name}.json", content)
    except OSError:
        print(f"Error: {error}", file=sys.stderr)
    return error.exit_code


def _measure(run: RunFolder, name: str, *, quiet: bool) -> list[dict[str, Any]]:
    package, version = run.facts["plugin_package"], run.facts["plugin_version"]
    culprit = f"{Entry(run.config.architecture, package, version, package).culprit}, in phase {name}"
    # The phase "check" finds such changes itself, and says more about them.
    watch = nullcontext() if name == "check" else watched(culprit)
    with attention_backend(run.config.attention), measuring(name, run.config) as (device, rows), watch:
        PHASES[name](run, device, rows, quiet=quiet)
    return rows.finished()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    with suppress(OSError, ValueError):  # closed, or on a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # threads and exit handlers that a plugin has left behind get no say
