"""The engine of every study.

A study has a plan. Its contenders are the architectures that take part. Short pilots predict the time and show which
contenders cannot take part. Then each cell is measured once; its record is kept in the folder under a key of everything
that it depends on. The outcome is made from the records. The engine does this for every kind of study, and resumes an
interrupted one. What a kind of study adds is in :mod:`archbench.study.contract`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, cast

from archbench.child.pool import run_all
from archbench.errors import KilledError, ResourceError, UsageError
from archbench.measure.machine import device_name, versions
from archbench.results.doubts import doubts
from archbench.results.lock import locked
from archbench.study.contract import C, Cell, Contender, O, P, Progress, R, Study
from archbench.study.outcome import Record, Seconds, heading
from archbench.study.records import PlanFile, read_record, write_record
from archbench.study.time_left import Predicted, TimeLeft, together
from archbench.trackers.following import followed_by

PROCESS_SECONDS = 3.0
"""Time to start a process: Python and torch are loaded, the text is read."""


class Session(Generic[P, C, R, O]):
    """One run of the engine, from the locked folder to the outcome.

    Attributes:
        contenders: all of the study, including those left out.
        measured: key -> cell and record, in the order of measurement.
        kept: content of the plan file, which passes from session to session.
        planning: cells are listed and not measured.
    """

    def __init__(
        self, study: Study[P, C, R, O], folder: Path, progress: Progress, trackers: Sequence[str] = ()
    ) -> None:
        self.study, self.folder, self.progress, self.trackers = study, folder, progress, tuple(trackers)
        self.contenders: list[Contender] = []
        self.measured: dict[str, tuple[C, R]] = {}
        self.kept: dict[str, Any] = {}
        self.planning = False
        self._started = time.monotonic()
        self._before = 0.0
        self._planned: list[tuple[list[C], int]] = []
        self._spare: list[C] = []
        self._left: TimeLeft | None = None

    @property
    def seconds(self) -> float:
        """Seconds of this session, and of the cells that earlier ones measured."""
        return self._before + time.monotonic() - self._started

    def taking_part(self) -> list[Contender]:
        """The contenders that are not left out."""
        return [one for one in self.contenders if one.matched]

    def leave_out(self, contender: Contender, reason: str | None) -> None:
        """Exclude the contender from what follows."""
        place = self.contenders.index(contender)
        self.contenders[place] = replace(contender, reason=reason)
        self.note(f"{contender} takes no further part: {reason}")

    def note(self, text: str) -> None:
        """Tell the user something."""
        if not self.planning:
            self.progress.note(text)

    def run(self, cells: Sequence[C], jobs: int | None = None) -> dict[str, R]:
        """Measure the cells that have no record yet; key -> record of all.

        Args:
            jobs: cells at a time; None for the plan's number.

        Raises:
            StorageError: the folder cannot be written; what was measured before is kept.
        """
        jobs = jobs or self.study.plan.jobs
        records = {cell.key: record for cell in cells if (record := self._known(cell)) is not None}
        if self.planning:
            self._planned.append((list(cells), jobs))
            return records
        self._before += sum(record.seconds for record in records.values()) / jobs
        unknown = [cell for cell in cells if cell.key not in records]
        for cell in cells:
            if cell.key in records:
                self.progress.known(cell, self.study.quality(cell, records[cell.key], self.folder))
        if self._left is not None and unknown:
            self._left.stage({cell.key: self._predicted(cell) for cell in unknown}, jobs)
        waiting = [Job(cell, self.folder, self.trackers, self.study.record) for cell in unknown]
        measured = run_all(_measure, waiting, jobs, culprit=str(self.folder), lost=_lost, started=self._started_one)
        for job, found in measured:
            cell, record = cast("C", job.cell), cast("R", found)
            records[cell.key] = record
            if self._left is not None:
                self._left.finished(cell.key, record.seconds if record.outcome == "ok" else None)
            self.progress.finished(cell, record, self.study.quality(cell, record, self.folder))
        self.measured |= {cell.key: (cell, records[cell.key]) for cell in cells}
        return records

    def spare(self, cells: Sequence[C]) -> None:
        """Add these cells to the predicted time: they may follow, depending on what others find."""
        self._spare += cells

    def admit(self) -> None:
        """Load the contenders and run their pilots."""
        self.contenders = self.study.contenders()
        pilots = {one.key: self.study.pilots(one) for one in self.taking_part()}
        self.progress.piloting(sum(map(len, pilots.values())))
        records = self.run([cell for own in pilots.values() for cell in own])
        for place, one in enumerate(self.contenders):
            if one.matched:
                own = [records[cell.key] for cell in pilots[one.key]]
                reason = self.study.admit(one, own, self.folder)
                self.contenders[place] = one = replace(one, reason=reason)
            if one.reason is not None:
                self.note(f"{one} takes no part: {one.reason}")
        self.study.prepare(self)

    def predict(self) -> None:
        """Predict the time of the whole study. The prediction is kept while the plan stays the same."""
        draft = Session(self.study, self.folder, self.progress)
        draft.planning, draft.contenders, draft.kept = True, list(self.contenders), copy.deepcopy(self.kept)
        self.study.measure(draft)
        left = [([cell for cell in cells if self._known(cell) is None], jobs) for cells, jobs in draft._planned]
        total, waiting = (sum(len(cells) for cells, _ in groups) for groups in (draft._planned, left))
        left.append((draft._spare, self.study.plan.jobs))
        seconds = sum(together([self.study.seconds(cell) for cell in cells], jobs) for cells, jobs in left if cells)
        seconds += PROCESS_SECONDS if waiting else 0.0
        known = [
            (cell, record, jobs) for cells, jobs in draft._planned for cell in cells if (record := self._known(cell))
        ]
        done = sum(record.seconds / jobs for _, record, jobs in known)
        self.kept.setdefault("predicted_seconds", self.seconds + done + seconds)
        self._left = TimeLeft(
            [([self._predicted(cell) for cell in cells], jobs) for cells, jobs in left[:-1]],
            [self._predicted(cell) for cell in draft._spare],
            [(self._predicted(cell), record.seconds) for cell, record, _ in known if record.outcome == "ok"],
            jobs=self.study.plan.jobs,
        )
        self.progress.began(self.kept["predicted_seconds"], self._left, total, total - waiting)

    def _predicted(self, cell: C) -> Predicted:
        return Predicted(self.study.sort(cell), self.study.seconds(cell))

    def _started_one(self, job: Job) -> None:
        cell = cast("C", job.cell)
        if self._left is not None:
            self._left.started(cell.key, self._predicted(cell))
        self.progress.started(cell)

    def _known(self, cell: C) -> R | None:
        return read_record(self.study.record, self.folder, cell.key)


def conduct(
    study: Study[P, C, R, O], folder: Path, progress: Progress, command: str, trackers: Sequence[str] = ()
) -> O:
    """Measure what is not known yet, then write the outcome.

    Args:
        folder: of the study; an existing folder is resumed if the new plan continues its plan.
        command: what the user typed; it is kept in the outcome.
        trackers: names of the experiment trackers that follow each run.

    Raises:
        UnknownNameError: an architecture, preset, task or tracker does not exist.
        UsageError: the folder holds another plan, another process works on it, or too few contenders take part.
        ArchbenchError: the baseline cannot be measured, or nothing can be stored.
    """
    import pyarrow as pa

    with followed_by(trackers, quiet=True):
        pass  # a tracker that cannot be loaded fails this command, not every cell
    with locked(folder):
        session = Session(study, folder, progress, trackers)
        file = PlanFile(folder / study.kind.plan_file)
        plan = study.plan.model_dump(mode="json")
        session.kept = file.read()
        if session.kept and not study.continues(session.kept):
            before = session.kept.get("plan", {}).get("architectures", [])
            also = ", ".join(name for name in before if name not in study.plan.architectures)
            cause = f"it holds a {study.kind.noun} of another plan" + (f", which also has {also}" if also else "")
            raise UsageError(str(folder), cause, "Choose another folder with --out, or leave it out")
        if session.kept.get("plan") != plan or session.kept.get("outcome", study.kind.file) != study.kind.file:
            session.kept.pop("predicted_seconds", None)

        def keep() -> None:
            contenders = [asdict(one) for one in session.contenders]
            new = {"digest": study.plan.digest(), "command": command, "plan": plan, "contenders": contenders}
            new["outcome"] = study.kind.file
            file.write({**session.kept, "measured_seconds": session.seconds, **new})

        session.admit()
        keep()
        session.predict()
        keep()
        study.measure(session)
        common = {
            **heading(study.kind, command, versions()),
            "seconds": Seconds(predicted=session.kept["predicted_seconds"], measured=session.seconds),
        }
        keep()
        outcome, tables = study.outcome(session, common)
        columns = ["run_id", "architecture", "phase", "metric", "value"]
        if tables and (found := doubts(pa.concat_tables(tables).select(columns).to_pandas())):
            outcome = outcome.model_copy(update={"doubts": found})
        outcome.write(folder, tables)
        return outcome


def machine(device: str) -> dict[str, Any]:
    """The machine of a study, as its outcome has it."""
    now = versions()
    named = {"device": device.partition(":")[0], "device_name": device_name(device)}
    return {**named, **{name: now[name] for name in ("torch_version", "python_version")}}


@dataclass(frozen=True)
class Job:
    """A cell to measure, and how its record is made if the machine lets it down."""

    cell: Cell[Record]
    folder: Path
    trackers: tuple[str, ...]
    record: type[Record]

    def lost(self, cause: str, seconds: float = 0.0) -> Record:
        """The record of a cell whose process was killed, or that ran out of memory.

        It is not written: neither the architecture nor the plan is at fault, so the same command measures it again.
        """
        return self.record(key=self.cell.key, run_id=None, outcome="failed", cause=cause, seconds=seconds)


def _lost(job: Job, how: str) -> Record:
    return job.lost(f"its process {how}")


def _measure(job: Job) -> Record:
    """Runs in a process of the pool: measure a cell and keep its record."""
    start = time.monotonic()
    try:
        record = job.cell.measure(job.folder, job.trackers)
    except (ResourceError, KilledError) as error:
        return job.lost(f"{error.culprit}: {error.cause}", time.monotonic() - start)
    record = record.model_copy(update={"seconds": time.monotonic() - start})
    write_record(job.folder, record)
    return record
