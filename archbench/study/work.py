"""What an order of a study carries, and the function that a launcher calls with it, on whatever machine."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import archbench
from archbench.errors import ArchbenchError, KilledError, LauncherError, ResourceError, from_dict
from archbench.interruption import exit_code, interruptible, underway
from archbench.measure.machine import device_name, driver_version
from archbench.plugin.registry import load
from archbench.results.claims import LEASE, is_held, renewal
from archbench.study.contract import Cell
from archbench.study.outcome import Record
from archbench.study.records import CELLS, read_record, write_record


@dataclass(frozen=True)
class Work:
    """Cells to measure one after the other, in one process.

    Attributes:
        cells: those that have a record are left out.
        folder: of the study.
        trackers: names of those that follow each run.
        record: class of the records.
        claim: file of the claim to the cells, which is renewed; None where the submitter renews it.
        code: what has to be the same here, as :func:`code_of` has it; empty on the submitter's own machine.
        attempts: how earlier attempts ended.
        lease: of the claim, in seconds.
    """

    cells: tuple[Cell[Record], ...]
    folder: Path
    trackers: tuple[str, ...]
    record: type[Record]
    claim: Path | None = None
    code: Mapping[str, str] | None = None
    attempts: tuple[str, ...] = ()
    lease: float = LEASE

    @property
    def needs(self) -> list[str]:
        """Paths in the study's folder of what the cells read; some may be missing."""
        return [path for cell in self.cells for path in getattr(cell, "needs", ())]

    @property
    def leaves(self) -> list[tuple[str, str]]:
        """Paths in the study's folder of what each cell writes: its run, and its record, which comes last."""
        return [(f"runs/{cell.key}", f"{CELLS}/{cell.key}.json") for cell in self.cells]

    @property
    def outside(self) -> list[str]:
        """Paths of what the cells read elsewhere: texts, plugins."""
        return sorted({path for cell in self.cells for path in getattr(cell, "outside", ())})

    def in_folder(self, folder: Path) -> Work:
        """The same work in another folder, where nobody else looks for its claim."""
        return replace(self, folder=folder, claim=None)


@dataclass(frozen=True)
class Done:
    """The records of cells, in their order, and the error that ended the work before the others."""

    records: tuple[Record, ...]
    error: Mapping[str, str] | None = None

    def raise_error(self) -> None:
        """Raise the error, with the worker's traceback as a note, if there is one."""
        if self.error is not None:
            error = from_dict(dict(self.error))
            error.add_note(f"where it was measured:\n{self.error['traceback']}")
            raise error


def carried_out(work: Work) -> Done:
    """Measure the cells. A signal ends this process after a whole update and a checkpoint, with its own code.

    Cells whose claim another process has taken over are left to it.
    """
    if work.code is None:
        return _measured(work)
    try:
        with interruptible(), underway():
            return _measured(work)
    except KeyboardInterrupt as interruption:
        os._exit(exit_code(interruption))  # an engine would keep the exception as a result


def _measured(work: Work) -> Done:
    records: list[Record] = []
    try:
        _require_same(work.code or {}, work.cells)
        with renewal(lambda: [work.claim] if work.claim is not None else [], work.lease):
            for cell in work.cells:
                if (known := read_record(work.record, work.folder, cell.key)) is not None:
                    records.append(known)
                elif work.claim is not None and not is_held(work.claim):
                    break
                else:
                    records.append(_record(cell, work))
    except ArchbenchError as error:
        return Done(tuple(records), {**error.as_dict(), "traceback": traceback.format_exc()})
    return Done(tuple(records))


def _record(cell: Cell[Record], work: Work) -> Record:
    """Measure a cell and keep its record."""
    start = time.monotonic()
    try:
        record = cell.measure(work.folder, work.trackers)
    except (ResourceError, KilledError) as error:
        return lost(work.record, cell, f"{error.culprit}: {error.cause}", time.monotonic() - start)
    new: dict[str, Any] = {"seconds": time.monotonic() - start}
    if work.code is not None:
        device = getattr(cell, "device", "cpu")
        new |= {"host": socket.gethostname(), "device_name": device_name(device), "driver": driver_version(device)}
        new |= {"attempts": work.attempts}
    record = record.model_copy(update=new)
    return write_record(work.folder, record)


def lost(kind: type[Record], cell: Cell[Record], cause: str, seconds: float = 0.0) -> Record:
    """The record of a cell whose process was killed, or that ran out of memory.

    It is not written: neither the architecture nor the plan is at fault, so the same command measures it again.
    """
    return kind(key=cell.key, run_id=None, outcome="failed", cause=cause, seconds=seconds)


def code_of(cells: Sequence[Cell[Record]]) -> dict[str, str]:
    """What the cells run -> its version or digest: archbench, torch, and each plugin."""
    from archbench.study.run_cells import source_digest

    names = {(cell.architecture, cell.plugins) for cell in cells if hasattr(cell, "plugins")}
    plugins = {f"the plugin of {name}": source_digest(load(name, plugins)) for name, plugins in names}
    return {"archbench": _own_digest(), "torch": metadata.version("torch"), **plugins}


def _require_same(code: Mapping[str, str], cells: Sequence[Cell[Record]]) -> None:
    """Raises a LauncherError that names what differs here."""
    if not code:
        return
    host = socket.gethostname()
    here = code_of(cells)
    for name, wanted in code.items():
        if here.get(name) != wanted:
            cause = f"{name} is {here.get(name, 'missing')} there, and {wanted} where the study was started"
            raise LauncherError(f"host {host}", cause, "Install the same there, or leave that host out")


@cache
def _own_digest() -> str:
    """Version and digest of archbench's own files."""
    root = Path(archbench.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{archbench.__version__} ({digest.hexdigest()[:12]})"
