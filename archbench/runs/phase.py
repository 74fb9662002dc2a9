"""Run one phase in a child process, and keep its rows in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from archbench.child.process import Child, LostError
from archbench.config import KernelConfig, RunConfig
from archbench.errors import PhaseError
from archbench.measure import environment
from archbench.measure.environment import Environment
from archbench.measure.machine import versions
from archbench.plugin.discovery import PLUGINS_VARIABLE
from archbench.runs.conformance import CHECK, Findings
from archbench.runs.folder import RunFolder

LONGEST_CHECK = 300.0
"""Seconds that the phase ``check`` may take, however long the others may."""


def run_phase(folder: RunFolder, phase: str, *, quiet: bool) -> list[dict[str, Any]]:
    """Measure one phase in a fresh process; returns its rows, which the run's folder then holds too.

    Raises:
        ArchbenchError: the phase raised it; a PhaseError if its process died or took too long.
        KeyboardInterrupt: its message says how to continue the run.
    """
    device = folder.config.device
    before = environment.snapshot(device)
    rows = _measured_apart(folder, phase, quiet=quiet)
    if phase != CHECK:  # it measures nothing that could be disturbed
        after = environment.snapshot(device)
        rows = with_environment(rows, before, after, repeat=folder.config.phases.index(phase))
    folder.write_rows(phase, rows)
    return rows


def time_limit(config: RunConfig, phase: str) -> float | None:
    """Seconds that the phase may take; None for no limit."""
    if phase == "train":
        return None
    return min(LONGEST_CHECK, config.time_limit) if phase == CHECK else config.time_limit


def thread_variables(config: RunConfig | KernelConfig) -> dict[str, str | None]:
    """Environment variables for the threads: OpenMP reads their number before torch can set it."""
    return {} if config.threads is None else {"OMP_NUM_THREADS": str(config.threads)}


def with_environment(
    rows: Sequence[Mapping[str, Any]], before: Environment, after: Environment, *, repeat: int = 0
) -> list[dict[str, Any]]:
    """The rows, and rows of the phase ``environment``: what else the machine did between the two snapshots."""
    same = (*versions(), "device", "device_name", "threads", "malloc", "parameters")
    machine = {name: rows[0][name] for name in same if name in rows[0]}
    watched = [
        {**machine, "phase": "environment", "metric": metric, "value": value, "repeat": repeat}
        for metric, value in environment.metrics(before, after).items()
    ]
    contaminated = bool(environment.contamination(before, after))
    return [{**row, "contaminated": contaminated} for row in [*rows, *watched]]


def _measured_apart(folder: RunFolder, phase: str, *, quiet: bool) -> list[dict[str, Any]]:
    """The rows that the phase's child process sends; its last findings are kept even if it fails."""
    request = {"out": str(folder.path.parent), "run_id": folder.run_id, "phase": phase, "quiet": quiet}
    variables = {**thread_variables(folder.config), PLUGINS_VARIABLE: None}  # the configuration names the plugins
    limit = time_limit(folder.config, phase)
    start = time.monotonic()
    findings: Findings | None = None
    message: dict[str, Any] = {}
    try:
        with Child("archbench.runs.worker", request, culprit=_culprit(folder, phase), variables=variables) as child:
            while "rows" not in message:
                left = None if limit is None else max(0.0, limit - (time.monotonic() - start))
                message = child.receive(left)
                findings = Findings(**message["findings"]) if "findings" in message else findings
    except LostError as lost:
        running = None if findings is None else findings.running
        raise _lost(folder, phase, lost, limit, f" in the check {running}" if running else "") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Continue with: {folder.resume_command}") from None
    finally:
        if findings is not None:
            findings.write(folder)
    rows: list[dict[str, Any]] = message["rows"]
    return rows


def _culprit(folder: RunFolder, phase: str) -> str:
    return f"phase {phase} of run {folder.run_id} ({folder.config.architecture})"


def _lost(folder: RunFolder, phase: str, lost: LostError, limit: float | None, during: str) -> PhaseError:
    """The error of a phase whose process ended, or took too long, before it sent its rows."""
    culprit, again = _culprit(folder, phase), folder.resume_command
    if lost.code is None:
        given = folder.config.time_limit
        longer = f"Continue, giving it longer, with: {again} --config time_limit={2 * given:g}"
        step = "Find out what it waits for" if during and given >= LONGEST_CHECK else longer
        return PhaseError(culprit, f"it took longer than {limit:g} s{during}", step)
    if lost.killed:
        cause = f"its process was killed{during}, usually because memory ran out"
        return PhaseError(culprit, cause, f"Use a smaller batch or preset, or continue with: {again}")
    cause = f"its process {lost}{during}{' and without its rows' if lost.code == 0 else ''}"
    return PhaseError(culprit, cause, f"See what it printed above, then continue with: {again}")
