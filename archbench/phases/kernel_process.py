"""The kernel phase in a process of its own, and what is stored when it is done.

``python -P -m archbench.phases.kernel_process FOLDER`` is the process that measures. It leaves its rows, or its error,
in a folder that exists for that long only: a run that is interrupted leaves nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archbench import __version__
from archbench.config import KernelConfig
from archbench.errors import ArchbenchError, DeviceError, PhaseError, from_dict
from archbench.measure import environment
from archbench.measure.machine import describe, versions
from archbench.phases.kernel import run_kernel
from archbench.phases.process import measuring
from archbench.processes import end_with_parent
from archbench.results.store import new_run_id, prepare_folder, write_run

CONFIG, OUTCOME = "config.json", "outcome.json"


@dataclass(frozen=True)
class KernelRun:
    """A finished run of the kernel phase.

    Attributes:
        path: its Parquet file; the configuration and what was left out is in the .json beside it.
        left_out: what was asked for and could not be measured, each with ``case``, ``candidate``, ``what``, ``reason``.
    """

    path: Path
    left_out: list[dict[str, Any]]


def measure_kernels(config: KernelConfig, *, quiet: bool = False) -> KernelRun:
    """Run the kernel phase in a fresh process, and store its rows.

    Args:
        config: the frozen configuration.
        quiet: say nothing on standard error while it runs.

    Raises:
        StorageError: the results cannot be written.
        DeviceError: nothing at all could be measured.
        PhaseError: the measuring process died.
        ArchbenchError: whatever else was wrong, named.
    """
    prepare_folder(config.out)
    run_id = new_run_id()
    with tempfile.TemporaryDirectory(prefix="archbench-kernels-") as name:
        folder = Path(name)
        (folder / CONFIG).write_text(config.model_dump_json())
        before = environment.snapshot(config.device)
        _measure_apart(folder, config, quiet=quiet)
        after = environment.snapshot(config.device)
        outcome = json.loads((folder / OUTCOME).read_text())
    rows, left_out = outcome["rows"], outcome["left_out"]
    contaminated = bool(environment.contamination(before, after))
    where = {name: rows[0][name] for name in (*versions(), "device", "device_name", "threads", "malloc")}
    rows += [
        {**where, "phase": "environment", "metric": metric, "value": value}
        for metric, value in environment.metrics(before, after).items()
    ]
    facts = {"versions": versions(), "machine": describe(config.device), "left_out": left_out}
    path = write_run(
        config.out,
        run_id,
        [{**row, "contaminated": contaminated} for row in rows],
        {"run_id": run_id, "kernel": config.model_dump(mode="json"), "facts": facts},
        {
            "architecture": "none",
            "plugin_package": "archbench",
            "plugin_version": __version__,
            "preset": "none",
            "config_hash": config.config_hash(),
            "seed": config.seed,
            "dtype": config.dtype,
            "compile": False,
        },
    )
    return KernelRun(path, left_out)


def _measure_apart(folder: Path, config: KernelConfig, *, quiet: bool) -> None:
    """The measuring process; this one sleeps in ``wait`` meanwhile, so that it takes no part in the timing."""
    # The profiler that counts bytes reports its starts and stops on standard error, unless it is told not to.
    variables = {"KINETO_LOG_LEVEL": "99", **os.environ}
    if config.threads is not None:  # OpenMP reads it once, before torch can set it
        variables["OMP_NUM_THREADS"] = str(config.threads)
    # -P: the working directory is not on the path, so nothing in it is imported unasked.
    command = [sys.executable, "-P", "-m", "archbench.phases.kernel_process", str(folder)]
    process = subprocess.Popen([*command, "quiet" if quiet else "verbose"], stdin=subprocess.DEVNULL, env=variables)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    left = json.loads((folder / OUTCOME).read_text()) if (folder / OUTCOME).exists() else {}
    if "error" in left:
        error = from_dict(left["error"])
        error.add_note(f"in the measuring process:\n{left['traceback']}")
        raise error
    if code == -signal.SIGKILL:
        raise PhaseError(
            "archbench kernels",
            "the measuring process was killed, most often for want of memory",
            "Leave out the longest --lengths and --losses, or the reference backend",
        )
    if code != 0:
        died = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise PhaseError(
            "archbench kernels",
            f"the measuring process {died}",
            "See what it printed above, and run again with fewer --backends to find the one at fault",
        )


def main(arguments: list[str]) -> int:
    """Measure what the folder's ``config.json`` says, and leave the outcome there: the rows, or the error."""
    folder, verbosity = Path(arguments[0]), arguments[1]
    end_with_parent()
    try:
        outcome = _measured(KernelConfig(**json.loads((folder / CONFIG).read_text())), quiet=verbosity == "quiet")
    except ArchbenchError as error:
        outcome = {"error": error.as_dict(), "traceback": traceback.format_exc()}
    except Exception as error:  # noqa: BLE001  the boundary of the process: whatever it was reaches the user as a PhaseError
        failure = PhaseError(
            "archbench kernels",
            f"it failed with {type(error).__name__}: {' '.join(str(error).split())[:500]}",
            "Run again with --debug for the traceback, or with smaller --lengths and --losses",
        )
        outcome = {"error": failure.as_dict(), "traceback": traceback.format_exc()}
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # the parent was interrupted too, and says so
    (folder / OUTCOME).write_text(json.dumps(outcome))
    return 0


def _measured(config: KernelConfig, *, quiet: bool) -> dict[str, Any]:
    with measuring("kernel", config) as (device, rows):
        left_out = run_kernel(config, device, rows, progress=_silent if quiet else _say)
    finished = rows.finished()
    if all(row["value"] is None for row in finished):
        reasons = dict.fromkeys(f"{one.candidate}: {one.reason}" for one in left_out)
        raise DeviceError(
            "archbench kernels", f"nothing could be measured ({'; '.join(reasons)})", "Ask for other --backends"
        )
    return {"rows": finished, "left_out": [one.as_dict() for one in left_out]}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
