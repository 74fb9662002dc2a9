"""What became of the cells of a study, for whoever asks: from its folder, and from the launchers that have orders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from archbench.errors import UsageError
from archbench.launch.choice import Choice
from archbench.launch.launcher import State
from archbench.results.claims import Claim, Claims, Owner
from archbench.study.dispatch import CANCELLED, unit_key
from archbench.study.engine import sessions
from archbench.study.json_schema import OUTCOMES
from archbench.study.outcome import Outcome, Record
from archbench.study.records import PLANNED, PlanFile, PlannedCell, PlannedStage, read_planned, read_record
from archbench.study.time_left import together

Phase = Literal["done", "failed", "running", "queued", "waiting", "lost"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class CellStatus:
    """A planned cell.

    Attributes:
        phase: done or failed by its record; running or queued by whoever has claimed it; waiting for anybody; lost: its
            process is gone, and the next one that works on the study takes it.
        launcher, host: who has it, and where.
        seconds: how long it took, or runs already; None if unknown.
        cause: of a failure or loss, or why it is queued.
    """

    cell: PlannedCell
    phase: Phase
    launcher: str | None = None
    host: str | None = None
    seconds: float | None = None
    cause: str | None = None


@dataclass(frozen=True)
class StudyStatus:
    """The cells of a study, or runs that a launcher has; the processes that work on them, and the time left.

    Attributes:
        noun: what is measured.
        command: that continues it; "" for runs, which have none.
        seconds_left: of what is planned, by what cells took so far; None before the pilots are over, or if nobody works
            on it.
    """

    folder: Path
    noun: str
    command: str
    finished: bool
    workers: list[Owner]
    cells: list[CellStatus]
    seconds_left: float | None

    def count(self, phase: Phase) -> int:
        return sum(one.phase == phase for one in self.cells)


def study_status(folder: Path) -> StudyStatus:
    """The status of the study in a folder.

    Raises:
        UsageError: there is no study in the folder.
        StorageError: a file of it is damaged.
        LauncherError: a launcher that has orders cannot be asked.
    """
    kind = _found(folder)
    kept = PlanFile(folder / kind.plan_file).read() if kind is not None else {}
    claims = Claims(folder, Owner.this_process("local"))
    newest = {claim.key: claim for claim in claims.all()}
    states = order_states(folder, [claim for claim in newest.values() if _is_out(claim)])
    stages = read_planned(folder)
    cells = [one for stage in stages for one in _stage(folder, stage, newest, states)]
    workers = sessions(claims)
    running = sum(one.phase == "running" for one in cells)
    busy = running or len(workers)
    left = _seconds_left(stages, cells, max(1, running)) if kind is not None and stages and busy else None
    finished = all(one.phase in ("done", "failed") for one in cells)
    finished = finished and (kind is None or (folder / kind.file).is_file())
    return StudyStatus(
        folder, "runs" if kind is None else kind.noun, kept.get("command", ""), finished, workers, cells, left
    )


def cancel_study(folder: Path, patience: float = 10.0) -> tuple[int, list[Owner]]:
    """Take back all orders, and tell the processes that work on the study to end; what is measured is kept.

    Args:
        patience: seconds to wait for those processes.

    Returns: orders that were taken back, and processes that have not ended yet.

    Raises:
        UsageError: there is no study in the folder.
        LauncherError: a launcher that has orders cannot be asked.
        OSError: the folder cannot be written.
    """
    _found(folder)
    claims = Claims(folder, Owner.this_process("local"))
    (folder / CANCELLED).touch()
    taken = 0
    for name, orders in _by_launcher([claim for claim in claims.all() if _is_out(claim)]).items():
        Choice(name).launcher(folder, None).cancel([str(claim.owner.order) for claim in orders if claim.owner])
        for claim in orders:
            claims.write(claim, ended="was cancelled")
            taken += 1
    late = time.monotonic() + patience
    while (left := sessions(claims)) and time.monotonic() < late:
        time.sleep(0.2)
    if not left:
        (folder / CANCELLED).unlink(missing_ok=True)
    return taken, left


def kind_of(folder: Path) -> type[Outcome]:
    """Raises a UsageError if there is no study in the folder."""
    for kind in OUTCOMES:
        if kind.is_in(folder):
            return kind
    step = "Name the folder that a compare, tune, scale or probe command printed"
    raise UsageError(str(folder), "there is no study in it", step)


def _found(folder: Path) -> type[Outcome] | None:
    """The kind of study in the folder; None for runs that a launcher has (:mod:`archbench.study.launched_runs`)."""
    if (folder / PLANNED).is_file() and not any(kind.is_in(folder) for kind in OUTCOMES):
        return None
    return kind_of(folder)


def order_states(folder: Path, claims: Sequence[Claim]) -> dict[str, State]:
    """Unit's key -> state of the order that its claim names."""
    found: dict[str, State] = {}
    for name, orders in _by_launcher(claims).items():
        named = {str(claim.owner.order): claim.key for claim in orders if claim.owner is not None}
        states = Choice(name).launcher(folder, None).states(list(named))
        found |= {named[order]: state for order, state in states.items()}
    return found


def _is_out(claim: Claim) -> bool:
    """Whether it names an order that goes on without the process that made it."""
    return claim.owner is not None and claim.owner.ended is None and claim.owner.order is not None


def _by_launcher(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    found: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.owner is not None:
            found.setdefault(claim.owner.launcher, []).append(claim)
    return found


def _stage(
    folder: Path, stage: PlannedStage, newest: Mapping[str, Claim], states: Mapping[str, State]
) -> list[CellStatus]:
    units = [stage.cells] if stage.turns else [[cell] for cell in stage.cells]
    found = []
    for cells in units:
        key = unit_key([cell.key for cell in cells])
        first = True
        for cell in cells:
            record = read_record(Record, folder, cell.key)
            found.append(_cell(cell, record, newest.get(key), states.get(key), first=first))
            first = first and record is not None
    return found


def _cell(
    cell: PlannedCell, record: Record | None, claim: Claim | None, state: State | None, *, first: bool
) -> CellStatus:
    phase: Phase
    if record is not None:
        phase = "failed" if record.outcome == "failed" else "done"
        return CellStatus(cell, phase, host=record.host, seconds=record.seconds, cause=record.cause)
    owner = claim.owner if claim is not None else None
    if claim is None or owner is None or not first:
        return CellStatus(cell, "waiting")
    if state is not None and state.phase in ("queued", "running"):
        elapsed = None if state.since is None else max(0.0, time.time() - state.since)
        return CellStatus(
            cell, "running" if state.phase == "running" else "queued", owner.launcher, state.host, elapsed
        )
    if owner.ended is not None:
        return CellStatus(cell, "waiting", cause=f"an attempt {owner.ended}")
    if claim.is_over or (state is not None and state.phase == "lost"):
        cause = state.cause if state is not None and state.cause is not None else f"{owner} is gone"
        return CellStatus(cell, "lost", owner.launcher, owner.host, cause=cause)
    return CellStatus(cell, "running", owner.launcher, owner.host, max(0.0, time.time() - owner.since))


def _seconds_left(stages: Sequence[PlannedStage], cells: Sequence[CellStatus], at_a_time: int) -> float:
    done = [one for one in cells if one.phase == "done" and one.seconds]
    predicted = sum(one.cell.seconds for one in done)
    factor = sum(one.seconds or 0.0 for one in done) / predicted if predicted else 1.0
    by_key = {one.cell.key: one for one in cells}
    left = 0.0
    for stage in stages:
        rest = [
            max(0.0, factor * cell.seconds - (one.seconds or 0.0 if one.phase == "running" else 0.0))
            for cell in stage.cells
            if (one := by_key[cell.key]).phase not in ("done", "failed")
        ]
        left += together(rest, 1 if stage.turns else at_a_time)
    return left


def as_json(status: StudyStatus) -> dict[str, Any]:
    """The whole status in plain values."""
    return {
        "folder": str(status.folder),
        "finished": status.finished,
        "seconds_left": status.seconds_left,
        "workers": [{"host": one.host, "pid": one.pid, "launcher": one.launcher} for one in status.workers],
        "cells": [
            {
                "key": one.cell.key,
                "architecture": one.cell.architecture,
                "sort": one.cell.sort,
                "phase": one.phase,
                "launcher": one.launcher,
                "host": one.host,
                "seconds": one.seconds,
                "cause": one.cause,
            }
            for one in status.cells
        ],
    }
