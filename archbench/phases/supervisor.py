"""Phases in processes of their own: started, limited in time, interrupted, and cleared up after, whatever they do."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading

from archbench.config import RunConfig
from archbench.errors import ArchbenchError, PhaseError, from_dict
from archbench.measure import environment
from archbench.measure.machine import versions
from archbench.phases.conformance import read_findings
from archbench.phases.folder import RunFolder
from archbench.plugin.discovery import PLUGINS_VARIABLE
from archbench.plugin.importing import clean_environment
from archbench.processes import end_group

CHECK = "check"
LONGEST_CHECK = 300.0
"""Seconds that the phase ``check`` may take, however long the others may."""

_GRACE = 5.0
"""Seconds in which an interrupted phase may put its files in order."""


def run_phase(folder: RunFolder, phase: str, *, quiet: bool) -> None:
    """One phase in a fresh process; its rows are in the run's folder afterwards.

    Raises:
        ArchbenchError: what ended the phase; PhaseError if its process died or took too long.
        KeyboardInterrupt: its message says how to go on with the run.
    """
    device = folder.config.device
    limit = time_limit(folder.config, phase)
    before = environment.snapshot(device)
    code, in_time = _run_process(folder, phase, limit, quiet=quiet)
    after = environment.snapshot(device)
    if code != 0 or not folder.rows_file(phase).exists():
        raise _phase_error(folder, phase, code if in_time else None, limit)
    if phase != CHECK:  # which measures nothing that could be disturbed
        _add_environment(folder, phase, before, after)


def time_limit(config: RunConfig, phase: str) -> float | None:
    """Seconds that the phase may take; None: as long as it takes."""
    if phase == "train":
        return None
    return min(LONGEST_CHECK, config.time_limit) if phase == CHECK else config.time_limit


def _run_process(folder: RunFolder, phase: str, limit: float | None, *, quiet: bool) -> tuple[int, bool]:
    """Exit code of the phase's process, and whether it ended in time; all that it started is gone afterwards.

    This process sleeps in ``wait`` meanwhile, so that it takes no part in the timing; with a limit given to ``wait``
    itself it would look twenty times a second.
    """
    # -P: the working directory is not on the path, so nothing in it is imported unasked.
    command = [sys.executable, "-P", "-m", "archbench.phases.worker", str(folder.path.parent), folder.run_id, phase]
    process = subprocess.Popen(
        [*command, "quiet" if quiet else "verbose"],
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else subprocess.DEVNULL,  # rows alone go to stdout
        env=_variables(folder.config),
        process_group=0,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        end_group(process.pid)
        process.kill()  # a process can leave its group

    alarm = threading.Timer(limit or 0.0, end)
    alarm.daemon = True
    try:
        if limit is not None:
            alarm.start()
        code = process.wait()
    except KeyboardInterrupt:
        _interrupt(process)
        raise KeyboardInterrupt(f"Continue with: {folder.resume_command}") from None
    finally:
        alarm.cancel()
        end_group(process.pid)
        process.kill()
        process.wait()
    return code, not late.is_set()


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Pass the interruption on: a terminal interrupts its own group of processes, and the phase has another."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_GRACE)


def _variables(config: RunConfig) -> dict[str, str]:
    """The phase's environment variables; OpenMP reads its number of threads once, before torch can set it."""
    variables = clean_environment()
    variables.pop(PLUGINS_VARIABLE, None)  # the configuration names those that are needed
    if config.threads is not None:
        variables["OMP_NUM_THREADS"] = str(config.threads)
    return variables


def _add_environment(
    folder: RunFolder, phase: str, before: environment.Environment, after: environment.Environment
) -> None:
    """Say in the phase's rows, and in some of their own, what else the machine did meanwhile."""
    rows = folder.read_rows(phase)
    contaminated = bool(environment.contamination(before, after))
    number = folder.config.phases.index(phase)
    # Of the machine, not of the model: the same device, threads, versions … as the phase's own rows.
    where = {name: rows[0][name] for name in (*versions(), "device", "device_name", "threads", "malloc", "parameters")}
    watched = [
        {**where, "phase": "environment", "metric": metric, "value": value, "repeat": number}
        for metric, value in environment.metrics(before, after).items()
    ]
    folder.write_rows(phase, [{**row, "contaminated": contaminated} for row in rows + watched])


def _phase_error(folder: RunFolder, phase: str, code: int | None, limit: float | None) -> ArchbenchError:
    """What a failed phase left behind: its own error, or how its process ended; ``code`` None: not in time."""
    again = folder.resume_command
    error_file = folder.path / f"error-{phase}.json"
    if error_file.exists():
        fields = json.loads(error_file.read_text())
        error_file.unlink()
        error = from_dict(fields)
        error.add_note(f"in phase {phase}:\n{fields['traceback']}")
        return error
    culprit = f"phase {phase} of run {folder.run_id} ({folder.config.architecture})"
    findings = read_findings(folder) if phase == CHECK else None
    during = f" in the check {findings.running}" if findings is not None and findings.running is not None else ""
    if code is None:
        given = folder.config.time_limit
        longer = f"Continue, giving it longer, with: {again} --config time_limit={2 * given:g}"
        step = "Find out what it waits for" if during and given >= LONGEST_CHECK else longer
        return PhaseError(culprit, f"it took longer than {limit:g} s{during}", step)
    if code == -signal.SIGKILL:
        return PhaseError(
            culprit,
            f"its process was killed{during}, most often for want of memory",
            f"Use a smaller batch or preset, or continue with: {again}",
        )
    if code < 0:
        cause = f"its process died of {signal.Signals(-code).name}{during}"
        return PhaseError(culprit, cause, f"Continue with: {again}")
    cause = f"its process ended with exit code {code}{during}" + ("" if code else " and without its rows")
    return PhaseError(culprit, cause, f"See what it printed above, then continue with: {again}")
