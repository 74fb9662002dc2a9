"""Which cells are measured by whom: claims them, hands them to the launcher, and watches those that others have.

Several processes, on several machines, may work on one study: each claims what has no record and is not claimed, and
waits for the records of what the others have.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from archbench.launch.launcher import FullError, Launcher, Order, State
from archbench.results.claims import Claim, Claims
from archbench.study.contract import Cell
from archbench.study.outcome import Record
from archbench.study.records import CELLS, read_record
from archbench.study.work import Done, Work, carried_out, code_of, lost

CANCELLED = "cancelled"
"""File that ``archbench cancel`` leaves in the folder of a study."""

WAIT = 2.0
"""Seconds between two looks at what others do; what happens in the launcher is noticed at once where it can be."""


@dataclass
class Unit:
    """One cell, or cells that one process measures in turns; it is claimed as a whole.

    Attributes:
        cells: all of them, measured already or not, so that every process finds the same key.
        seconds: predicted.
        alone: nothing else may run on its machine, as beside cells that are measured in turns. So it is also after
            memory ran out on a machine that it shared.
        told: keys of the cells whose records are known.
        losses: cell key -> how often an order ended while it was measured.
    """

    cells: Sequence[Cell[Any]]
    seconds: float | None = None
    alone: bool = False
    told: set[str] = field(default_factory=set)
    losses: Counter[str] = field(default_factory=Counter)

    @property
    def exclusive(self) -> bool:
        """Whether nothing may run beside it."""
        return self.alone or len(self.cells) > 1

    @property
    def key(self) -> str:
        """Of the only cell, or of all of them together."""
        return unit_key([cell.key for cell in self.cells])

    @property
    def left(self) -> list[Cell[Any]]:
        """The cells without a record, in their order; the first is being measured, or comes next."""
        return [cell for cell in self.cells if cell.key not in self.told]


def unit_key(cells: Sequence[str]) -> str:
    """The key of the unit with cells of these keys."""
    return cells[0] if len(cells) == 1 else hashlib.sha256(" ".join(cells).encode()).hexdigest()[:16]


@dataclass
class _Out:
    """A unit that the launcher has, under this claim."""

    unit: Unit
    claim: Claim


class Dispatch:
    """One process's work on one study.

    Args:
        launcher: entered already.
        claims: of this process, renewed already.
        record: class of the cells' records.
        gpus, cpus: that a cell needs.
        note: tells the user something.
    """

    def __init__(
        self,
        launcher: Launcher,
        claims: Claims,
        folder: Path,
        record: type[Record],
        trackers: tuple[str, ...],
        *,
        gpus: int = 0,
        cpus: int = 1,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.launcher, self.claims, self.folder = launcher, claims, folder
        self.record, self.trackers = record, trackers
        self.gpus, self.cpus, self.note = gpus, cpus, note
        self._out: dict[str, _Out] = {}
        self._was_full = False

    def measured(
        self, units: Sequence[Unit], limit: int | None, started: Callable[[Cell[Any]], None]
    ) -> Iterator[tuple[Cell[Any], Record]]:
        """Yield each cell with its record, as they come.

        Args:
            units: without those whose cells all have records.
            limit: most units of this process at a time; None for what the launcher takes.
            started: called when a cell is begun, here or elsewhere.

        Raises:
            ArchbenchError: what ended the study.
            KeyboardInterrupt: somebody cancelled it.
        """
        waiting, others = deque(units), dict[str, Unit]()
        begun: set[str] = set()
        while waiting or self._out or others:
            self._see_cancelled()
            while waiting and self._room(limit) > 0:
                self._begin(waiting.popleft(), others)
            found: list[tuple[Cell[Any], Record]] = []
            written = self._written()
            for name, state in (self.launcher.states(list(self._out)) if self._out else {}).items():
                unit = self._out[name].unit
                if state.phase in ("done", "lost"):
                    found += self._ended(name, state, waiting)
                else:
                    found += self._read(unit, written)
                if state.phase == "running" and unit.left and unit.left[0].key not in begun:
                    begun.add(unit.left[0].key)
                    started(unit.left[0])
            for key, unit in list(others.items()):
                found += self._read(unit, written)
                if not unit.left:
                    del others[key]
            for key in list(others)[: max(0, self._room(limit))]:
                self._begin(others.pop(key), others)
            for cell, record in found:
                if cell.key not in begun:
                    started(cell)
                yield cell, record
            if not found and (self._out or others):
                self.launcher.wait(WAIT)

    def abandon(self, cause: str) -> None:
        """The claims of this process are over, except to orders that go on without it."""
        for out in self._out.values():
            if not self.launcher.survives:
                self.claims.write(out.claim, ended=cause)

    def _room(self, limit: int | None) -> int:
        """How many more units this process may hand on."""
        slots = self.launcher.slots() if limit is None else min(limit, self.launcher.slots())
        return slots - len(self._out)

    def _begin(self, unit: Unit, others: dict[str, Unit]) -> None:
        """Hand a unit to the launcher, or watch it if another process has it, or the engine is full."""
        before = self.claims.newest(unit.key)
        if before is not None and before.is_over and self._adopted(unit, before):
            return
        claim = self.claims.take(unit.key)
        if claim is None:
            others[unit.key] = unit
            return
        work = Work(
            tuple(unit.left),
            self.folder.resolve(),
            self.trackers,
            self.record,
            attempts=tuple(owner.ended or "was lost" for owner in self.claims.history(unit.key)[:-1]),
        )
        if not self.launcher.one_machine:
            held = claim.file.resolve() if self.launcher.shared else None
            work = replace(work, code=code_of(unit.left), lease=self.claims.lease, claim=held)
        first = unit.left[0]
        order = Order(
            f"{unit.key}.{claim.number}",
            f"{first.architecture} {getattr(first, 'stage', '')}".strip(),
            carried_out,
            work,
            gpus=self.gpus,
            cpus=self.cpus,
            exclusive=unit.exclusive,
            seconds=unit.seconds,
        )
        try:
            name = self.launcher.submit(order)
        except FullError as error:
            self.claims.withdraw(claim)
            others[unit.key] = unit
            if not self._was_full:
                self.note(f"{error}; the other runs wait here")
            self._was_full = True
            return
        except BaseException:
            self.claims.write(claim, ended="was not queued")
            raise
        self._out[name] = _Out(unit, claim)
        if self.launcher.survives:
            self.claims.write(claim, order=name)

    def _adopted(self, unit: Unit, claim: Claim) -> bool:
        """Look after an order that another process, which lives no longer, has queued with this launcher."""
        owner = claim.owner
        if owner is None or owner.ended is not None or owner.order is None or not self.launcher.survives:
            return False
        if owner.launcher != self.claims.owner.launcher or owner.order in self._out:
            return False
        if self.launcher.states([owner.order])[owner.order].phase not in ("queued", "running"):
            return False
        self.claims.hold(claim)
        self._out[owner.order] = _Out(unit, claim)
        return True

    def _ended(self, name: str, state: State, waiting: deque[Unit]) -> list[tuple[Cell[Any], Record]]:
        """The records of an order that has ended. What is left of its unit waits for another attempt.

        Raises:
            ArchbenchError: what ended the study.
        """
        out = self._out.pop(name)
        unit, done = out.unit, state.result
        found = self._read(unit, self._written())
        if isinstance(done, Done):
            records = {record.key: record for record in done.records}
            found += [(cell, records[cell.key]) for cell in unit.left if cell.key in records]
            unit.told |= set(records)
        cause = state.cause or "ended without a record"
        if unit.left and (state.phase == "lost" or not found):
            current = unit.left[0]
            unit.losses[current.key] += 1
            guilty = state.crowded and unit.exclusive
            if guilty or not state.again or unit.losses[current.key] >= self.launcher.tries:
                unit.told.add(current.key)
                alone = ", with nothing of this study beside it" if guilty else ""
                found.append((current, lost(self.record, current, cause + alone)))
            unit.alone |= state.crowded
        if unit.left or state.phase == "lost":
            self.claims.write(out.claim, ended=cause)
        else:
            self.claims.finish(unit.key)
        if isinstance(done, Done):
            done.raise_error()
        if unit.left:
            waiting.appendleft(unit)
        return found

    def _read(self, unit: Unit, written: set[str]) -> list[tuple[Cell[Any], Record]]:
        """The records of the unit that have appeared in the folder."""
        found = []
        for cell in unit.left:
            if cell.key in written and (record := read_record(self.record, self.folder, cell.key)) is not None:
                unit.told.add(cell.key)
                found.append((cell, record))
        return found

    def _written(self) -> set[str]:
        """Keys of all records in the folder: one look for all units."""
        with contextlib.suppress(FileNotFoundError):
            return {name.removesuffix(".json") for name in os.listdir(self.folder / CELLS)}
        return set()

    def _see_cancelled(self) -> None:
        if (self.folder / CANCELLED).exists():
            raise KeyboardInterrupt(CANCELLED)
