"""Run one phase in a child process, and keep its rows in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from archbench.child.process import Child, LostError
from archbench.config import KernelConfig, RunConfig
from archbench.errors import KilledError, PhaseError
from archbench.measure import environment
from archbench.measure.environment import Environment
from archbench.measure.machine import memory_bytes, memory_kills, versions
from archbench.plugin.discovery import PLUGINS_VARIABLE
from archbench.runs.conformance import CHECK, Findings
from archbench.runs.device_watch import ENVIRONMENT
from archbench.runs.folder import RunFolder
from archbench.runs.ranks import SHARED, measured_together

WORKER = "archbench.runs.worker"
LONGEST_CHECK = 300.0
"""Seconds that the phase ``check`` may take while ``time_limit`` is an hour or less."""


Heard = Callable[[Mapping[str, Any]], None]
"""Called with each message of the phase's process; of the checks it says which one runs."""


def run_phase(folder: RunFolder, phase: str, heard: Heard, *, quiet: bool) -> list[dict[str, Any]]:
    """Measure one phase in a fresh process; returns its rows, which the run's folder then holds too.

    Raises:
        ArchbenchError: the phase raised it; a PhaseError if its process died or took too long.
    """
    device = folder.config.device
    before = environment.snapshot(device)
    rows, cpu_seconds = _measured_apart(folder, phase, heard, quiet=quiet)
    if phase != CHECK:  # it measures nothing that could be disturbed
        after = environment.snapshot(device, ended=cpu_seconds)
        number, idle = folder.config.phases.index(phase), folder.facts.get("idle_watts")
        rows = with_environment(rows, before, after, repeat=number, idle_watts=idle)
    folder.write_rows(phase, rows)
    return rows


def time_limit(config: RunConfig, phase: str) -> float | None:
    """Seconds that the phase may take; None for no limit. The checks get a twelfth, but at least five minutes of it."""
    if phase == "train":
        return None
    limit = config.time_limit
    return min(limit, max(LONGEST_CHECK, limit / 12)) if phase == CHECK else limit


def thread_variables(config: RunConfig | KernelConfig) -> dict[str, str | None]:
    """Environment variables for the threads: OpenMP reads their number before torch can set it."""
    return {} if config.threads is None else {"OMP_NUM_THREADS": str(config.threads)}


def with_environment(
    rows: Sequence[Mapping[str, Any]],
    before: Environment,
    after: Environment,
    *,
    repeat: int = 0,
    idle_watts: float | None = None,
) -> list[dict[str, Any]]:
    """The rows, and rows of the phase ``environment``: what else the machine did between the two snapshots, and what
    the measuring processes saw of their devices (:func:`device_watched`)."""
    seen: dict[str, float | None] = {}
    for row in (row for row in rows if row["phase"] == ENVIRONMENT):  # several ranks have each a row of their joules
        name, value, known = row["metric"], row["value"], seen.get(row["metric"], 0.0)
        seen[name] = None if value is None or known is None else known + value
    if "joules" in seen:
        seen["idle_watts"] = idle_watts
    rows = [row for row in rows if row["phase"] != ENVIRONMENT]
    same = (*versions(), "device", "device_name", "host", "driver", "threads", "malloc", "parameters")
    machine = {name: rows[0][name] for name in same if name in rows[0]}
    watched = [
        {**machine, "phase": ENVIRONMENT, "metric": metric, "value": value, "repeat": repeat}
        for metric, value in {**environment.metrics(before, after), **seen}.items()
    ]
    contaminated = bool(environment.contamination(before, after))
    return [{**row, "contaminated": contaminated} for row in [*rows, *watched]]


def _measured_apart(folder: RunFolder, phase: str, heard: Heard, *, quiet: bool) -> tuple[list[dict[str, Any]], float]:
    """The rows that the phase's child process sends, and its CPU time; its last findings are kept even if it fails."""
    request = {"out": str(folder.path.parent), "run_id": folder.run_id, "phase": phase, "quiet": quiet}
    variables = {**thread_variables(folder.config), PLUGINS_VARIABLE: None}  # the configuration names the plugins
    limit = time_limit(folder.config, phase)
    lost_by = partial(_lost, folder, phase, kills=memory_kills())
    if phase in SHARED and folder.config.nproc != 1:
        ended = partial(lost_by, limit=limit)
        return measured_together(folder.config, request, variables, _culprit(folder, phase), ended, limit)
    findings: Findings | None = None
    message: dict[str, Any] = {}
    try:
        on_cpu = folder.config.device == "cpu"
        with Child(WORKER, request, culprit=_culprit(folder, phase), variables=variables, forked=on_cpu) as child:
            # Its parent looks at the checks once a second, and sleeps while anything is measured.
            clock = child.own_time() if phase == CHECK else time.monotonic
            start = clock()
            while "rows" not in message:
                left = None if limit is None else max(0.0, limit - (clock() - start))
                message = child.receive(left, clock)
                heard(message)
                findings = Findings.of(message["findings"]) if "findings" in message else findings
    except LostError as lost:
        running = None if findings is None else findings.running
        during = f" in the check {running}" if running else ""
        raise lost_by(_culprit(folder, phase), lost, limit=limit, during=during) from None
    finally:
        if findings is not None:
            findings.write(folder)
    return message["rows"], message["cpu_seconds"]


def _culprit(folder: RunFolder, phase: str) -> str:
    return f"phase {phase} of run {folder.run_id} ({folder.config.architecture})"


def _lost(
    folder: RunFolder,
    phase: str,
    culprit: str,
    lost: LostError,
    *,
    kills: int,
    limit: float | None,
    during: str = "",
) -> PhaseError:
    """The error of a phase whose process ended, or took too long, before it sent its rows.

    Args:
        kills: what :func:`memory_kills` said before the phase.
        limit: seconds that it had.
        during: where it was, for the error.
    """
    again = folder.resume_command
    if lost.code is None:
        assert limit is not None
        given = folder.config.time_limit
        twice = 2 * given if limit == given else 24 * limit
        step = f"Continue, giving it longer, with: {again} --config time_limit={twice:g}"
        return PhaseError(culprit, f"it took longer than {limit:g} s{during}", step)
    if lost.killed:
        cause = f"its process was killed{during}, usually because memory ran out"
        if memory_kills() > kills:
            most = f"{memory_bytes() / 2**30:.3g} GiB"
            cause = f"it ran out of memory{during}: the kernel killed its process, which may have {most}"
        return KilledError(culprit, cause, f"Use a smaller batch or preset, or continue with: {again}")
    cause = f"its process {lost}{during}{' and without its rows' if lost.code == 0 else ''}"
    kind = KilledError if lost.interrupted else PhaseError
    return kind(culprit, cause, f"See what it printed above, then continue with: {again}")
