"""A run of the kernel benchmark: measured in a child process, and stored when it has finished."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench import __version__
from archbench.child.process import Child, LostError
from archbench.config import KernelConfig
from archbench.errors import DeviceError, PhaseError
from archbench.measure import environment
from archbench.measure.attention_speeds import keep_attention_speeds
from archbench.measure.energy import idle_watts
from archbench.measure.machine import describe, versions
from archbench.plugin.growth import check_room
from archbench.presentation.step_view import StepView
from archbench.results.store import new_run_id, prepare_folder, write_run
from archbench.runs.device import measuring
from archbench.runs.device_watch import device_watched
from archbench.runs.kernel_cases import cases
from archbench.runs.kernel_timing import run_kernel
from archbench.runs.phase import thread_variables, with_environment

if TYPE_CHECKING:
    from archbench.child.entry import Parent

CULPRIT = "archbench kernels"


@dataclass(frozen=True)
class KernelRun:
    """A finished run of the kernel benchmark.

    Attributes:
        path: its Parquet file; the .json file beside it has the configuration and ``left_out``.
        left_out: requested measurements that were not possible: ``case``, ``candidate``, ``what`` and ``reason``.
    """

    path: Path
    left_out: list[dict[str, Any]]


def measure_kernels(config: KernelConfig, *, quiet: bool = False) -> KernelRun:
    """Run the kernel benchmark in a fresh process, and store its rows.

    Args:
        config: the frozen configuration.
        quiet: print no progress to standard error.

    Raises:
        StorageError: the results cannot be written.
        DeviceError: nothing could be measured.
        PhaseError: the measuring process died.
        ArchbenchError: the child process raised it.
    """
    prepare_folder(config.out)
    run_id = new_run_id(config.out)
    idle, before = idle_watts(config.device), environment.snapshot(config.device)
    rows, left_out, cpu_seconds = _measured_apart(config, quiet=quiet)
    after = environment.snapshot(config.device, ended=cpu_seconds)
    rows = with_environment(rows, before, after, idle_watts=idle)
    if config.device.startswith("cuda") and not any(row["contaminated"] for row in rows):
        keep_attention_speeds(config.device, rows)
    facts = {"versions": versions(), "machine": describe(config.device), "left_out": left_out}
    path = write_run(
        config.out,
        run_id,
        rows,
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


def _measured_apart(config: KernelConfig, *, quiet: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Rows, what was left out, and CPU seconds, from the child process."""
    request = {"config": config.model_dump(mode="json"), "quiet": quiet}
    # By default the profiler that counts bytes reports its starts and stops on standard error.
    variables = {"KINETO_LOG_LEVEL": os.environ.get("KINETO_LOG_LEVEL", "99"), **thread_variables(config)}
    try:
        with Child(__name__, request, culprit=CULPRIT, variables=variables) as child:
            rows, left_out, cpu_seconds = child.receive()
            return rows, left_out, cpu_seconds
    except LostError as lost:
        step = "See what it printed above, and run again with fewer --backends to find the one at fault"
        if lost.killed:
            step = "Leave out the longest --lengths and --losses, or the reference backend"
        raise PhaseError(CULPRIT, f"the measuring process {lost}", step) from None


def main(parent: Parent, request: dict[str, Any]) -> None:
    """In the child: measure, and send the rows, what was left out, and this process's CPU seconds.

    Raises:
        DeviceError: nothing could be measured.
    """
    config, quiet = KernelConfig(**request["config"]), request["quiet"]

    with StepView(shown=not quiet, still=True) as steps, measuring("kernel", config) as (device, rows):
        for case in cases(config):
            needed = case.least_bytes(4 if config.dtype == "float32" else 2)
            check_room(str(case), "its inputs and gradients take", needed, str(device))
        with device_watched(device, rows, first=True, quiet=quiet):
            left_out = run_kernel(config, device, rows, progress=steps.at)
    finished = rows.finished()
    if all(row["value"] is None for row in finished if row["phase"] == "kernel"):
        reasons = dict.fromkeys(f"{one.candidate}: {one.reason}" for one in left_out)
        raise DeviceError(CULPRIT, f"nothing could be measured ({'; '.join(reasons)})", "Ask for other --backends")
    parent.send([finished, [asdict(one) for one in left_out], time.process_time()])
