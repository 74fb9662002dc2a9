"""Jobs of SLURM: what squeue and sacct say of them, and what their process does beside its order."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archbench.interruption import exit_code
from archbench.launch.launcher import State

BEAT = 2.0
"""Seconds between two signs of life of a job's process."""

NOT_SHARED, SETUP_FAILED, NO_OUTPUT = 86, 87, 53
"""Exit codes of the job's script, and the signal by which SLURM says that it could not open the job's output."""

FIELDS = ("JobID", "State", "Reason", "NodeList", "SubmitTime", "StartTime", "EndTime", "TimeLimit", "exit_code")
SACCT_FIELDS = ("JobIDRaw", "State", "Reason", "NodeList", "Submit", "Start", "End", "Timelimit", "ExitCode")
QUEUED = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
_OUT_OF_MEMORY = re.compile(r"oom.kill|out of memory|exceeded (job )?memory limit", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A job as squeue or sacct tells it.

    Attributes:
        submitted, begun, ended: seconds since the epoch; ``ended`` is expected while the job runs. None if unknown.
        minutes: its time limit; None without one.
        code, number: of the exit, and of the signal that ended it.
    """

    state: str
    reason: str = ""
    nodes: str = ""
    submitted: float | None = None
    begun: float | None = None
    ended: float | None = None
    minutes: float | None = None
    code: int = 0
    number: int = 0

    @property
    def may_have_result(self) -> bool:
        """Whether its process came to an end of its own, after which its result may yet be seen."""
        return self.state in ("COMPLETED", "FAILED") and self.number == 0 and self.code in (0, 1)


def rows_of(text: str) -> dict[str, Row]:
    """Job -> row, of the lines of squeue or sacct in the order of :data:`FIELDS`, with times in seconds."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        job, state, reason, nodes, submitted, begun, ended, limit, code = line.split("|")[: len(FIELDS)]
        exit_, _, number = code.partition(":")
        if not number:  # squeue has the status of wait(2)
            exit_, number = str(int(code) >> 8), str(int(code) & 127)
        since = {"submitted": submitted, "begun": begun, "ended": ended}
        times = {name: float(text) for name, text in since.items() if text.isdecimal()}
        nodes = "" if nodes in ("None assigned", "(null)") else nodes
        rows[job] = Row(
            state.split()[0], reason, nodes, **times, minutes=minutes(limit), code=int(exit_), number=int(number)
        )
    return rows


def state_of(row: Row, said: str = "", delay: float = 0.0) -> State:
    """What a row of a job without a result means.

    Args:
        said: the end of the job's output.
        delay: seconds before the time limit at which it is interrupted.
    """
    if row.state in QUEUED:
        if row.reason.lower().replace("_", " ").startswith(("launch failed", "joblaunchfailure")):
            return State("lost", cause="could not be launched, and SLURM holds it")
        waits = None if row.reason in ("", "None") else f"waits: {row.reason}"
        return State("queued", since=row.submitted, cause=waits)
    node = row.nodes or None
    if row.state in RUNNING:
        return State("running", node, row.begun)
    on, again = f" on {node}" if node else "", True
    lasted = row.ended - row.begun if row.ended is not None and row.begun is not None else 0.0
    limit = f"reached its time limit of {row.minutes:g} min" if row.minutes else "reached its time limit"
    number = row.number or (row.code - 128 if row.code > 128 else 0)
    if row.state == "OUT_OF_MEMORY" or (row.state in ("FAILED", "UNKNOWN") and _OUT_OF_MEMORY.search(said)):
        cause, again = f"ran out of memory{on}", False
    elif row.state == "FAILED" and delay and row.minutes and number and lasted >= 60 * row.minutes - delay - 60:
        cause = limit  # SLURM sends the signal up to a minute early
    elif row.state == "FAILED" and row.number == NO_OUTPUT:
        cause, again = f"could not open its output in the study's folder{on}", False
    elif row.state == "FAILED" and row.code == NOT_SHARED:
        cause, again = f"found another folder than the study's{on}", False
    elif row.state == "FAILED" and number in set(signal.Signals):
        verb = "was killed" if number == signal.SIGKILL else "was interrupted"
        cause = f"{verb}{on} ({signal.Signals(number).name})"
    else:
        causes = {
            "PREEMPTED": "was preempted",
            "NODE_FAIL": f"lost its node{on and f' {node}'}",
            "BOOT_FAIL": f"got a node that did not boot{on and f', {node}'}",
            "TIMEOUT": limit,
            "DEADLINE": "missed its deadline",
            "CANCELLED": "was cancelled",
            "COMPLETED": f"ended without a result{on}",
            "FAILED": f"ended with code {row.code}{on}: {said_last(said) or 'it said nothing'}",
            "UNKNOWN": "ended without a result, or was never queued; SLURM no longer knows it",
        }
        cause = causes.get(row.state, f"is {row.state}")
    return State("lost", node, row.ended, cause, again)


def in_job(function: Callable[[Any], Any], argument: Any, folder: str) -> Any:
    """What a job's process does: SIGTERM is the function's own, and submitit requeues nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    job = os.environ["SLURM_JOB_ID"]
    (Path(folder) / f"{result_file(job)}.save_tmp").unlink(missing_ok=True)  # submitit would refuse to write again
    try:
        with _alone(Path(folder), job, int(os.environ.get("SLURM_RESTART_COUNT", "0"))):
            return function(argument)
    except KeyboardInterrupt as interruption:
        os._exit(exit_code(interruption))


@contextlib.contextmanager
def _alone(folder: Path, job: str, start: int) -> Iterator[None]:
    """Within this context no other start of the job is at work, earlier or later.

    SLURM requeues the job of a node that it does not reach, where the process may live on. The number of the latest
    start is in a file; whoever is at work touches another. A later start waits until that one is old, by the file
    server's clock; an earlier one interrupts itself.
    """
    latest, alive, ended = folder / f"{job}_start", folder / f"{job}_alive", threading.Event()

    def watch() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError, ValueError):  # not reached, or being written
                if int(latest.read_text("ascii")) > start:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                alive.touch()

    def is_old() -> bool:
        latest.write_text(str(start), "ascii")
        return not alive.exists() or latest.stat().st_mtime - alive.stat().st_mtime > 3 * BEAT

    while not is_old():
        time.sleep(0.5)
    alive.touch()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        for file in (latest, alive):
            file.unlink(missing_ok=True)
    finally:
        ended.set()
        thread.join()


def said_last(text: str) -> str:
    """The last line that says something, without the name of the command."""
    return (_said(text) or [""])[-1]


def said_first(text: str) -> str:
    """The first such line: sbatch names a limit there, and only then what follows from it."""
    return (_said(text) or [""])[0]


def _said(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [re.sub(r"^(\w+: )?(error: )?", "", line).rstrip(".") for line in lines]


def minutes(limit: str) -> float | None:
    """Of ``[days-]hours:minutes:seconds``, as SLURM shows it; None if there is no limit."""
    days, _, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in parts):
        return None
    seconds = sum(int(part) * (1, 60, 3600)[place] for place, part in enumerate(reversed(parts)))
    return int(days or 0) * 1440 + seconds / 60


def result_file(name: str) -> str:
    return f"{name}_0_result.pkl"
