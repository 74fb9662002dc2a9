"""SLURM: each order is a job, which submitit's executor queues; the jobs' files are in ``FOLDER/slurm``.

A job that SLURM requeues (it was preempted, or its node died) keeps its number: it is queued again, and its function
begins again. submitit's own signals and checkpoints take no part in that. What has no setting here is set by sbatch's
environment variables, such as ``SBATCH_RESERVATION``.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field

from archbench.errors import LauncherError, did_you_mean
from archbench.files.loader import open_regular, read_text
from archbench.files.writing import create_once
from archbench.launch.launcher import FullError, Launcher, Order, Settings, State

from .slurm_jobs import (
    FIELDS,
    NO_OUTPUT,
    NOT_SHARED,
    QUEUED,
    RUNNING,
    SACCT_FIELDS,
    SETUP_FAILED,
    Row,
    in_job,
    minutes,
    result_file,
    rows_of,
    said_first,
    said_last,
    state_of,
)

POLL = 5.0
"""Seconds between two questions to the controller; results are seen at once, without one."""

PATIENCE = 300.0
"""Seconds that the controller may be out of reach: it is restarted, or busy."""

LATE = 30.0
"""Seconds that a result may take to be seen over a network file system after its job has ended."""

RETRY = 30.0
"""Seconds after which SLURM, which took no more jobs, is offered another although none of this process's has ended."""

_TOO_MANY = re.compile(r"Submit\w*Limit|job submit limit|temporarily unable|temporarily unavailable", re.IGNORECASE)
_UNREACHED = "Unable to contact slurm controller"
_LATER = re.compile(r"busy|down, drained or reserved|temporarily unavailable")
_NO_JOB = "Invalid job id"


class SlurmSettings(Settings):
    """By the names of sbatch and submitit."""

    partition: str | None = Field(None, description="partition; the cluster's default if not given")
    timeout_min: int = Field(240, ge=1, description="time limit of a job in minutes")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of a job")
    gres: str | None = Field(None, description="instead of gpus_per_node where a kind is wanted: gpu:a100:1")
    cpus_per_task: int | None = Field(None, ge=1, description="cores of a job; the threads of a run if not given")
    mem_gb: float | None = Field(None, gt=0, description="memory of a job in GB; the cluster's default if not given")
    account: str | None = Field(None, description="who pays")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features of nodes, such as a100")
    nodelist: str | None = Field(None, description="only on these nodes")
    exclude: str | None = Field(None, description="never on these nodes")
    exclusive: bool = Field(False, description="each job has a whole node; jobs that measure times always have")
    setup: str | None = Field(None, description="shell command that comes first in each job: module load cuda")
    signal_delay_s: int = Field(
        0, ge=0, description="seconds before the time limit at which a run is interrupted; 0: at the limit"
    )
    max_jobs: int = Field(100, ge=1, description="most jobs queued or running at a time")


class Slurm(Launcher):
    """The cluster whose commands are on PATH."""

    settings_class = SlurmSettings
    survives: ClassVar[bool] = True

    def __init__(self, settings: SlurmSettings, folder: Path, jobs: int | None) -> None:
        super().__init__(settings, folder.absolute(), jobs)
        self._most = jobs or settings.max_jobs
        self._jobs = self.folder / "slurm"
        self._mark = ""
        self._rows: dict[str, Row] = {}
        self._own: set[str] = set()
        self._asked = self._reached = self._full = float("-inf")
        self._taken = self._changed = 0

    def __enter__(self) -> Self:
        try:
            from submitit import SlurmExecutor
        except ImportError as error:
            step = "Install it with: pip install 'archbench[slurm]'"
            raise LauncherError("launcher 'slurm'", f"it needs submitit: {error}", step) from error
        missing = [name for name in ("sbatch", "squeue", "scancel", "sinfo", "srun") if shutil.which(name) is None]
        if missing:
            step = "Run it where jobs are submitted, such as a login node, or choose another launcher"
            raise LauncherError("launcher 'slurm'", f"there is no {missing[0]} on this machine", step)
        self._require_partition()
        self._executor = SlurmExecutor(self._jobs)
        self._executor.update_parameters(**self._parameters())
        script = self._executor._make_submission_file_text("true", "test")
        tested = _asked("sbatch", "--test-only", stdin=script)
        if tested.returncode and not _LATER.search(tested.stderr):
            raise LauncherError("launcher 'slurm'", f"sbatch refuses: {said_last(tested.stderr)}", _STEP)
        here = self._jobs / "here"
        with _writing(here):
            self._jobs.mkdir(parents=True, exist_ok=True)
            create_once(here, uuid.uuid4().hex.encode())
        self._mark = read_text(here, error=LauncherError, culprit=str(here), limit=64, next_step="Delete it")
        self._reached = time.monotonic()
        return self

    def slots(self) -> int:
        return self._most if time.monotonic() > self._full + RETRY else self._taken

    def submit(self, order: Order) -> str:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        self._executor.update_parameters(**self._parameters(order))
        said = io.StringIO()
        try:
            with _outside_jobs(), contextlib.redirect_stderr(said), _writing(self._jobs):
                job = self._executor.submit(in_job, order.function, order.argument, str(self._jobs))
        except (FailedJobError, FailedSubmissionError) as error:
            text = said.getvalue() or str(error)
            if _TOO_MANY.search(text) and _asked("squeue", "--noheader", "--states=all", "--format=%A").stdout.strip():
                self._full, self._taken = time.monotonic(), self._outstanding()  # until one of them ends
                raise FullError(f"SLURM takes no more jobs for now: {said_first(text)}") from error
            if _UNREACHED in text and time.monotonic() < self._reached + PATIENCE:
                self._full, self._taken = time.monotonic(), 0
                raise FullError(f"SLURM takes no jobs for now: {said_last(text)}") from error
            raise LauncherError("launcher 'slurm'", f"sbatch refuses: {said_last(text)}", _STEP) from error
        self._reached = time.monotonic()
        self._own.add(job.job_id)
        self._rows[job.job_id] = Row("PENDING", submitted=time.time())
        return str(job.job_id)

    def states(self, names: Sequence[str]) -> dict[str, State]:
        there: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            there.update(os.listdir(self._jobs))
        self._ask([name for name in _jobs(names) if result_file(name) not in there])
        return {name: self._done(name) if result_file(name) in there else self._state(name) for name in names}

    def cancel(self, names: Sequence[str]) -> None:
        jobs = _jobs(names)
        for start in range(0, len(jobs), 500):
            answer = _asked("scancel", *jobs[start : start + 500])
            if answer.returncode and _NO_JOB not in answer.stderr:
                raise _unreachable(answer.stderr)

    def wait(self, seconds: float) -> None:
        """Ends when a file has come into the jobs' folder, such as a result."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            changed = self._jobs.stat().st_mtime_ns
            if changed != self._changed:
                self._changed = changed
                return
            time.sleep(min(0.2, left))

    def _parameters(self, order: Order | None = None) -> dict[str, Any]:
        """What sbatch is asked for, by submitit's names; None takes back what an order before has asked for."""
        settings = self.settings
        gpus = settings.gpus_per_node or (order.gpus if order is not None and settings.gres is None else 0)
        cpus = settings.cpus_per_task or (order.cpus if order is not None else 1)
        setup = [
            f'[ "$(cat {shlex.quote(str(self._jobs / "here"))})" = {shlex.quote(self._mark)} ] || exit {NOT_SHARED}',
            *([f"{{ {settings.setup}\n}} || exit {SETUP_FAILED}"] if settings.setup else []),
        ]
        same = ("partition", "gres", "account", "qos", "constraint", "nodelist", "exclude")
        return {
            **{name: getattr(settings, name) for name in same},
            "job_name": re.sub(r"[^\w.-]+", "-", order.title if order is not None else "archbench"),
            "comment": order.name if order is not None else None,
            "time": settings.timeout_min,
            "gpus_per_node": gpus or None,
            "cpus_per_task": cpus,
            # Since SLURM 22.05 srun does not take the cores from the job; a second start adds to the output.
            "srun_args": [f"--cpus-per-task={cpus}", "--open-mode=append"],
            "mem": f"{round(settings.mem_gb * 1024)}M" if settings.mem_gb else None,
            "exclusive": True if settings.exclusive or (order is not None and order.exclusive) else None,
            "setup": setup,
            "stderr_to_stdout": True,
            # submitit's USR2 would end archbench's children at once.
            "additional_parameters": {"requeue": True, "signal": f"TERM@{settings.signal_delay_s}"},
        }

    def _require_partition(self) -> None:
        answer = _asked("sinfo", "--noheader", "--format=%P|%l")
        if answer.returncode:
            raise _unreachable(answer.stderr)
        rows = [line.strip().split("|") for line in answer.stdout.splitlines()]
        limits = {name.rstrip("*"): minutes(limit) for name, limit in rows}
        wanted = self.settings.partition or ",".join(name[:-1] for name, _ in rows if name.endswith("*"))
        if not wanted:
            raise LauncherError("setting partition", "the cluster has no default", did_you_mean("", limits))
        for name in wanted.split(","):
            if name not in limits:
                raise LauncherError(
                    f"partition {name!r}", "the cluster has none of that name", did_you_mean(name, limits)
                )
            limit = limits[name]
            if limit is not None and self.settings.timeout_min > limit:
                cause = f"partition {name!r} lets a job run for {limit:g} min at most"
                raise LauncherError(f"timeout_min={self.settings.timeout_min}", cause, _STEP)

    def _outstanding(self) -> int:
        return sum(self._rows[name].state in QUEUED | RUNNING for name in self._own)

    def _ask(self, names: Sequence[str]) -> None:
        """Bring what is known of these jobs up to date: one question for all, and not too often."""
        new = any(name not in self._rows for name in names)
        if not names or (not new and time.monotonic() < self._asked + POLL):
            return
        self._asked = time.monotonic()
        format_ = ",".join(f"{field}:|" for field in FIELDS)
        answer = _asked("squeue", "--noheader", "--states=all", f"--jobs={','.join(names)}", f"--Format={format_}")
        if answer.returncode and _NO_JOB not in answer.stderr:
            if new or time.monotonic() > self._reached + PATIENCE:
                raise _unreachable(answer.stderr)
            return
        self._reached = time.monotonic()
        found = rows_of(answer.stdout)
        if gone := [name for name in names if name not in found]:  # ended some minutes ago
            fields = ",".join(SACCT_FIELDS)
            ask = ("sacct", "-X", "--noheader", "--parsable2", f"--jobs={','.join(gone)}", f"--format={fields}")
            found |= rows_of(_asked(*ask).stdout)
        self._rows |= {name: found.get(name, Row("UNKNOWN")) for name in names}

    def _state(self, name: str) -> State:
        row = self._rows.get(name, Row("UNKNOWN"))
        if row.state in QUEUED | RUNNING:
            state = state_of(row)
            if state.phase == "lost":  # held
                self.cancel([name])
            return state
        if row.may_have_result and time.time() - (row.ended or 0.0) < LATE:
            return State("running", row.nodes or None, row.begun)
        said = self._tail(name)
        if name in self._own and (row.code == NOT_SHARED or row.number == NO_OUTPUT):
            step = "Choose a folder that all nodes share with --out, or --launcher-set exclude=NODE"
            raise LauncherError(str(self.folder), f"node {row.nodes} does not have it, or cannot write there", step)
        if name in self._own and row.code == SETUP_FAILED:
            cause = f"it failed on node {row.nodes}: {said_last(said)}"
            raise LauncherError(f"setup={self.settings.setup}", cause, _STEP)
        return state_of(row, said, self.settings.signal_delay_s)

    def _done(self, name: str) -> State:
        """Results of this process's own orders are read; of others' the records are in the study's folder.

        A result is a pickle, and a folder may come from anybody.
        """
        row = self._rows.get(name, Row("UNKNOWN"))
        if name not in self._own:
            return State("done", row.nodes or None)
        with open_regular(self._jobs / result_file(name)) as file:
            outcome, result = pickle.load(file)
        if outcome == "success":
            return State("done", row.nodes or None, result=result)
        return State("lost", row.nodes or None, cause=f"failed: {said_last(result)}", again=False)

    def _tail(self, name: str) -> str:
        """The end of what the job has said."""
        with contextlib.suppress(FileNotFoundError), open_regular(self._jobs / f"{name}_0_log.out") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return file.read(4096).decode(errors="replace")
        return ""


_STEP = "Set another with --launcher-set NAME=VALUE"


def _jobs(names: Sequence[str]) -> list[str]:
    """Those that are numbers of jobs; a claim in a folder from anybody may name an option of scancel."""
    return [name for name in names if name.isascii() and name.isdecimal()]


@contextlib.contextmanager
def _outside_jobs() -> Iterator[None]:
    """Within this context the environment has nothing of a job that this process runs in: sbatch would inherit it."""
    from submitit.helpers import clean_env

    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(kept)
        yield


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LauncherError(
            str(path), f"it cannot be written: {error.strerror}", "Choose another with --out"
        ) from error


def _asked(*command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Ask SLURM; times in its answer are seconds since the epoch."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    try:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _unreachable(said: str) -> LauncherError:
    step = "Ask sinfo; if it fails too, SLURM is down, or SLURM_CONF names another cluster"
    return LauncherError("launcher 'slurm'", f"the controller is not reached: {said_last(said)}", step)
