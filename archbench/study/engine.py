"""The engine of every study.

A study has a plan. Its contenders are the architectures that take part. Short pilots predict the time and show which
contenders cannot take part. Then each cell is measured once; its record is kept in the folder under a key of everything
that it depends on. The outcome is made from the records. The engine does this for every kind of study, and resumes an
interrupted one. What a kind of study adds is in :mod:`archbench.study.contract`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic, cast

from archbench.errors import UsageError
from archbench.interruption import underway
from archbench.launch.choice import LOCAL, Choice
from archbench.measure.machine import device_name, usable_cpus, versions
from archbench.results.claims import Claims, Owner, sweep
from archbench.results.doubts import doubts
from archbench.results.lock import locked
from archbench.results.store import prepared_folder
from archbench.study.contract import C, Cell, Contender, O, P, Progress, R, Study
from archbench.study.dispatch import CANCELLED, Dispatch, Unit
from archbench.study.outcome import Seconds, heading
from archbench.study.records import PlanFile, PlannedCell, PlannedStage, read_record, write_planned
from archbench.study.time_left import Predicted, TimeLeft, together
from archbench.trackers.following import followed_by

SESSION = "session"
"""How the keys of the claims begin that processes which work on a study have."""

PROCESS_SECONDS = 3.0
"""Time to start a process: Python and torch are loaded, the text is read."""


class Session(Generic[P, C, R, O]):
    """One run of the engine, from the locked folder to the outcome.

    Attributes:
        contenders: all of the study, including those left out.
        measured: key -> cell and record, in the order of measurement.
        kept: content of the plan file, which passes from session to session.
        planning: cells are listed and not measured.
        dispatch: measures cells; None while planning.
    """

    def __init__(self, study: Study[P, C, R, O], folder: Path, progress: Progress) -> None:
        self.study, self.folder, self.progress = study, folder, progress
        self.dispatch: Dispatch | None = None
        self.contenders: list[Contender] = []
        self.measured: dict[str, tuple[C, R]] = {}
        self.kept: dict[str, Any] = {}
        self.planning = False
        self._started = time.monotonic()
        self._before = 0.0
        self._planned: list[tuple[list[C], bool]] = []
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

    def run(self, cells: Sequence[C], *, turns: bool = False) -> dict[str, R]:
        """Measure the cells that have no record yet; key -> record of all.

        Args:
            turns: one process measures them one after the other, alone on its machine, because they are timed.

        Raises:
            StorageError: the folder cannot be written; what was measured before is kept.
        """
        jobs = self._jobs(turns)
        records = {cell.key: record for cell in cells if (record := self._known(cell)) is not None}
        if self.planning:
            self._planned.append((list(cells), turns))
            return records
        assert self.dispatch is not None
        self._before += sum(record.seconds for record in records.values()) / jobs
        unknown = [cell for cell in cells if cell.key not in records]
        for cell in cells:
            if cell.key in records:
                self.progress.known(cell, self.study.quality(cell, records[cell.key], self.folder))
        if self._left is not None and unknown:
            self._left.stage({cell.key: self._predicted(cell) for cell in unknown}, jobs)
        units = [Unit(cells, told=set(records))] if turns and unknown else [Unit([cell]) for cell in unknown]
        for one, found in self.dispatch.measured(units, 1 if turns else None, self._started_one):
            cell, record = cast("C", one), cast("R", found)
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
        left = [
            ([cell for cell in cells if self._known(cell) is None], self._jobs(turns))
            for cells, turns in draft._planned
        ]
        total = sum(len(cells) for cells, _ in draft._planned)
        waiting = sum(len(cells) for cells, _ in left)
        left.append((draft._spare, self._jobs()))
        seconds = sum(together([self.study.seconds(cell) for cell in cells], jobs) for cells, jobs in left if cells)
        seconds += PROCESS_SECONDS if waiting else 0.0
        known = [
            (cell, record, self._jobs(turns))
            for cells, turns in draft._planned
            for cell in cells
            if (record := self._known(cell))
        ]
        done = sum(record.seconds / jobs for _, record, jobs in known)
        self.kept.setdefault("predicted_seconds", self.seconds + done + seconds)
        write_planned(self.folder, self._stages(draft._planned))
        self._left = TimeLeft(
            [([self._predicted(cell) for cell in cells], jobs) for cells, jobs in left[:-1]],
            [self._predicted(cell) for cell in draft._spare],
            [(self._predicted(cell), record.seconds) for cell, record, _ in known if record.outcome == "ok"],
            jobs=self._jobs(),
        )
        self.progress.began(self.kept["predicted_seconds"], self._left, total, total - waiting)

    def _stages(self, planned: Sequence[tuple[list[C], bool]]) -> list[PlannedStage]:
        """What others can know of what is planned."""
        return [
            PlannedStage(
                turns=turns,
                cells=[
                    PlannedCell(
                        key=cell.key,
                        architecture=cell.architecture,
                        sort=self.study.sort(cell),
                        seconds=self.study.seconds(cell),
                    )
                    for cell in cells
                ],
            )
            for cells, turns in planned
        ]

    def _jobs(self, turns: bool = False) -> int:
        """Cells at a time."""
        if turns:
            return 1
        return self.study.plan.jobs if self.dispatch is None else max(1, self.dispatch.launcher.slots())

    def _predicted(self, cell: C) -> Predicted:
        return Predicted(self.study.sort(cell), self.study.seconds(cell))

    def _started_one(self, found: Cell[Any]) -> None:
        cell = cast("C", found)
        if self._left is not None:
            self._left.started(cell.key, self._predicted(cell))
        self.progress.started(cell)

    def _known(self, cell: C) -> R | None:
        return read_record(self.study.record, self.folder, cell.key)


def conduct(
    study: Study[P, C, R, O],
    folder: Path,
    progress: Progress,
    command: str,
    trackers: Sequence[str] = (),
    choice: Choice = LOCAL,
) -> O:
    """Measure what is not known yet, then write the outcome.

    Args:
        folder: of the study; an existing folder is resumed if the new plan continues its plan.
        command: what the user typed; it is kept in the outcome.
        trackers: names of the experiment trackers that follow each run.
        choice: of the launcher that takes the cells to machines.

    Raises:
        UnknownNameError: an architecture, preset, task, tracker or launcher does not exist.
        UsageError: the folder holds another plan, processes measure another in it, or too few contenders take part.
        LauncherError: the launcher cannot be used.
        ArchbenchError: the baseline cannot be measured, or nothing can be stored.
    """
    import pyarrow as pa

    with followed_by(trackers, quiet=True):
        pass  # a tracker that cannot be loaded fails this command, not every cell
    connection = choice.launcher(folder, study.plan.jobs)
    claims = Claims(folder, Owner.this_process(choice.name))
    with underway(), prepared_folder(folder), connection as launcher, claims.renewed():
        session = Session(study, folder, progress)
        run = getattr(study.plan, "run", None)
        cpus = max(1, (getattr(run, "threads", None) or len(usable_cpus())) // study.plan.jobs)
        gpus = int(str(getattr(run or study.plan, "device", "cpu")).startswith("cuda"))
        session.dispatch = Dispatch(
            launcher, claims, folder, study.record, tuple(trackers), gpus=gpus, cpus=cpus, note=session.note
        )
        file = PlanFile(folder / study.kind.plan_file)
        plan = study.plan.model_dump(mode="json")

        def keep() -> None:
            contenders = [asdict(one) for one in session.contenders]
            new = {"digest": study.plan.digest(), "command": command, "plan": plan, "contenders": contenders}
            new["outcome"] = study.kind.file
            file.write({**session.kept, "measured_seconds": session.seconds, **new})

        with joined(study, file, claims) as session.kept:
            try:
                session.admit()
                keep()
                session.predict()
                keep()
                study.measure(session)
            except BaseException as error:
                session.dispatch.abandon("was interrupted" if isinstance(error, KeyboardInterrupt) else "ended")
                raise
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


@contextlib.contextmanager
def joined(study: Study[P, C, R, O], file: PlanFile, claims: Claims) -> Iterator[dict[str, Any]]:
    """Within this context this process is one of those that work on the study; yields the content of the plan file.

    Raises:
        UsageError: the folder holds another plan, or processes measure another plan in it.
    """
    folder, key = claims.folder, f"{SESSION}-{secrets.token_hex(8)}"
    with locked(folder):
        kept = file.read()
        if kept and not study.continues(kept):
            before = kept.get("plan", {}).get("architectures", [])
            also = ", ".join(name for name in before if name not in study.plan.architectures)
            cause = f"it holds a {study.kind.noun} of another plan" + (f", which also has {also}" if also else "")
            raise UsageError(str(folder), cause, "Choose another folder with --out, or leave it out")
        plan = hashlib.sha256(repr((study.kind.file, study.plan.model_dump(mode="json"))).encode()).hexdigest()[:16]
        if others := [owner for owner in sessions(claims) if owner.plan != plan]:
            step = "Wait for it, or choose another folder with --out"
            raise UsageError(str(folder), f"another process is measuring in it ({others[0]})", step)
        same = kept.get("plan") == study.plan.model_dump(mode="json")
        if not same or kept.get("outcome", study.kind.file) != study.kind.file:
            kept.pop("predicted_seconds", None)
        (folder / CANCELLED).unlink(missing_ok=True)
        sweep(folder)
        claims.take(key, plan)
    try:
        yield kept
    finally:
        claims.finish(key)


def sessions(claims: Claims) -> list[Owner]:
    """The processes that work on the study in this folder now; the claims of killed ones go."""
    working = []
    for claim in claims.all():
        if claim.key.startswith(f"{SESSION}-"):
            if claim.is_over:  # it was killed
                claims.finish(claim.key)
            elif claim.owner is not None:
                working.append(claim.owner)
    return working


def machine(device: str, measured_on: str | None = None) -> dict[str, Any]:
    """The machine of a study, as its outcome has it.

    Args:
        measured_on: the device's name, as cells say; None for this machine's.
    """
    now = versions()
    named = {"device": device.partition(":")[0], "device_name": measured_on or device_name(device)}
    return {**named, **{name: now[name] for name in ("torch_version", "python_version")}}
