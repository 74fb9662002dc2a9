"""One phase in a process of its own: ``python -P -m archbench.phases.worker OUT RUN_ID PHASE``.

Its rows go to the run's folder; an error goes there too, for the runner to raise again.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from typing import Any, Protocol

import torch

from archbench.errors import ArchbenchError, PhaseError
from archbench.kernels import attention_backend
from archbench.phases.folder import RunFolder, open_run, write_text
from archbench.phases.process import end_with_parent, measuring
from archbench.phases.quality import run_quality
from archbench.phases.rows import Rows
from archbench.phases.speed import run_decode, run_prefill
from archbench.phases.train import run_train


class Phase(Protocol):
    def __call__(self, run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None: ...


PHASES: dict[str, Phase] = {"train": run_train, "quality": run_quality, "prefill": run_prefill, "decode": run_decode}


def main(arguments: list[str]) -> int:
    """Run one phase; the exit code is the error's, 0 without one."""
    out, run_id, name, verbosity = arguments
    end_with_parent()
    run = open_run(out, run_id)
    try:
        run.write_rows(name, _measure(run, name, quiet=verbosity == "quiet"))
    except ArchbenchError as error:
        return _leave(error, run, name)
    except Exception as error:  # noqa: BLE001  the boundary of the process: whatever it was reaches the user as a PhaseError
        failure = PhaseError(
            f"phase {name} of run {run_id}",
            f"it failed with {type(error).__name__}: {' '.join(str(error).split())[:500]}",
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
    with attention_backend(run.config.attention), measuring(name, run.config) as (device, rows):
        PHASES[name](run, device, rows, quiet=quiet)
    return rows.finished()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
