"""Cells in processes beside each other: as many at a time as the plan says, each once, whatever becomes of it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol, TypeVar

from archbench.errors import PhaseError
from archbench.processes import end_with_parent

C = TypeVar("C", bound="Keyed")
R = TypeVar("R")
CellKind = TypeVar("CellKind", contravariant=True)
RecordKind = TypeVar("RecordKind", contravariant=True)


class Keyed(Protocol):
    """What is measured once, and kept under its key."""

    @property
    def key(self) -> str: ...


class Follower(Protocol[CellKind, RecordKind]):
    """Is told how a command goes on that measures cells; what it does with that changes nothing."""

    def piloting(self, cells: int) -> None:
        """So many pilots run first, if they are not known, to predict what all will take."""
        ...

    def began(self, seconds: float, left: float, cells: int, known: int) -> None:
        """After the pilots: what all is predicted to take and what is left of it, and how many cells are known."""
        ...

    def finished(self, cell: CellKind, record: RecordKind) -> None:
        """A cell was measured."""
        ...

    def note(self, text: str) -> None:
        """Something to know, such as why an architecture takes no part."""
        ...


def run_cells(
    cells: Sequence[C],
    folder: Path,
    jobs: int,
    finished: Callable[[C, R], None],
    *,
    known: Callable[[Path, str], R | None],
    measure: Callable[[C, Path], R],
) -> dict[str, R]:
    """The record of each cell by its key; those that are known are not run again.

    Args:
        folder: where records are kept.
        jobs: cells at a time.
        finished: told of each cell that was measured now, as soon as it is.
        known: the record that the folder has of a key.
        measure: makes a cell's record and keeps it; a function of a module, for other processes to find.

    Raises:
        StorageError: the folder cannot be written; what was measured before is kept.
        PhaseError: a process that ran cells was killed.
        KeyboardInterrupt: as ever; the cells that were running are gone on with next time.
    """
    records = {cell.key: record for cell in cells if (record := known(folder, cell.key)) is not None}
    waiting = [cell for cell in cells if cell.key not in records]
    if not waiting:
        return records
    # Spawned: a fork of a process that has threads (torch's) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(waiting)), mp_context=context, initializer=end_with_parent)
    try:
        running: dict[Future[R], C] = {pool.submit(measure, cell, folder): cell for cell in waiting}
        for future in as_completed(running):
            cell = running[future]
            records[cell.key] = future.result()
            finished(cell, records[cell.key])
    except BrokenProcessPool as error:
        cause = "a process that was measuring was killed, most often for want of memory"
        step = "Free some memory or use fewer --jobs, then run the same command again: what is finished is kept"
        raise PhaseError(str(folder), cause, step) from error
    except BaseException:
        for process in multiprocessing.active_children():  # what they run ends with them
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return records
