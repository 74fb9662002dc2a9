"""Plain runs in the hands of a launcher: ``archbench run --launcher``.

Each run is a cell that is measured once and belongs to one command: nothing predicts it and nothing compares it. Its
rows, configuration and folder are in ``OUT``, as those of any run. ``OUT/launched-XXXXXX`` has what the command needs
meanwhile: claims and records, what ``archbench status`` and ``cancel`` read, the launcher's files.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from archbench.config import RunConfig
from archbench.errors import ArchbenchError, KilledError, StorageError, from_dict, storing
from archbench.interruption import underway
from archbench.launch.choice import Choice
from archbench.measure.machine import usable_cpus
from archbench.plugin.registry import load
from archbench.presentation.quantities import counted
from archbench.results.claims import Claims, Owner
from archbench.results.reading import read_results
from archbench.results.store import prepared_folder
from archbench.runs.folder import CONFIG, RunFolder, open_run
from archbench.runs.run import resume, run
from archbench.study.dispatch import CANCELLED, Dispatch, Unit
from archbench.study.engine import SESSION
from archbench.study.outcome import Record
from archbench.study.records import MAKE_ROOM, PlannedCell, PlannedStage, write_planned
from archbench.study.run_cells import places_outside

if TYPE_CHECKING:
    import pandas as pd

TIMED = ("prefill", "decode", "serve")
"""Phases whose times other work on the machine would change."""

GPU_THREADS = 2
"""Threads of a process that trains on a GPU: one gives it work, one goes backward."""

_LAST = "/.json/.parquet"
"""Suffixes of what a run leaves, in the order in which it appears; its folder has none."""

DIGITS = 6
"""Random digits of a run's id: the first ones of its cell's key, by which another attempt finds it."""


class RunRecord(Record):
    """How a run ended: with this error, as :meth:`archbench.errors.ArchbenchError.as_dict` has it, or with none."""

    error: dict[str, str] | None = None


@dataclass(frozen=True)
class LaunchedRun:
    """One run, as a launcher's order carries it.

    Attributes:
        config: of the run.
        key: of the cell; its first digits end the run's id.
        shared: whether it sees ``OUT``; otherwise its files come back with the order.
    """

    config: RunConfig
    key: str
    shared: bool = True

    @property
    def architecture(self) -> str:
        return self.config.architecture

    @property
    def plugins(self) -> tuple[str, ...]:
        return self.config.plugins

    @property
    def device(self) -> str:
        return self.config.device

    @property
    def stage(self) -> str:
        """What the order's title says beside the architecture."""
        return f"seed {self.config.seed}"

    @property
    def outside(self) -> tuple[str, ...]:
        """Files and folders that it reads elsewhere."""
        return places_outside(self.config)

    def __str__(self) -> str:
        return f"{self.architecture} {self.stage}"

    def place(self, folder: Path) -> Path:
        """Where the run's files are, by the folder of the command."""
        return folder.parent if self.shared else folder / "runs" / self.key

    def begun(self, folder: Path) -> RunFolder | None:
        """The run, if an attempt has begun it."""
        out = self.place(folder)
        found = [path.parent.name for path in out.glob(f"*-{self.key[:DIGITS]}/{CONFIG}")]
        return open_run(out, found[0]) if found else None

    def measure(self, folder: Path, trackers: Sequence[str]) -> RunRecord:
        """Run, or resume what an earlier attempt has begun. The record has an error that ended the run.

        Raises:
            StorageError: the results cannot be written, so later runs would be lost too.
        """
        out = self.place(folder)
        try:
            begun = self.begun(folder)
            if begun is None:
                run(self.config.override(out=str(out)), quiet=True, digits=self.key[:DIGITS])
            elif not begun.finished:
                resume(self.architecture, begun.run_id, out, quiet=True)
        except StorageError:
            raise
        except ArchbenchError as error:
            cause = f"{error.culprit}: {error.cause}"
            ended = RunRecord(key=self.key, run_id=None, outcome="failed", cause=cause, error=error.as_dict())
        else:
            ended = RunRecord(key=self.key, run_id=None, outcome="ok")
        begun = self.begun(folder)
        return ended if begun is None else ended.model_copy(update={"run_id": begun.run_id})


class Watcher(Protocol):
    """Who is told what becomes of the runs; a run is named by its place among the configurations."""

    def note(self, text: str, *, needed: bool = False) -> None:
        """Progress, such as where a run was measured; ``needed``: what to do next, also for who wants no progress."""

    def ended(self, place: int, outcome: pd.DataFrame | ArchbenchError) -> None:
        """A run has ended, with its rows or an error."""


def measure_launched(configs: Sequence[RunConfig], choice: Choice, watcher: Watcher) -> None:
    """Measure the runs, as many at a time as the launcher takes. One that fails costs only itself.

    Args:
        configs: they differ in nothing but architecture, seed and what follows from these.

    Raises:
        UnknownNameError, UsageError: there is no such launcher or setting.
        LauncherError: the launcher cannot be used; or a host cannot, which ends the command.
        StorageError: the results cannot be written.
        KeyboardInterrupt: a signal, or archbench cancel.
    """
    folder = Path(configs[0].out) / f"launched-{secrets.token_hex(DIGITS // 2)}"
    cpus, gpus, timed = _needs(configs[0])
    connection = choice.launcher(folder, 1 if timed or gpus else max(1, len(usable_cpus()) // cpus))
    claims = Claims(folder, Owner.this_process(choice.name))
    runs: dict[str, tuple[int, LaunchedRun]] = {}
    _sweep(folder.parent)
    stays = False
    try:
        with underway(), prepared_folder(folder), connection as launcher, claims.renewed():
            for place, config in enumerate(configs):
                try:
                    load(config.architecture, config.plugins)
                except ArchbenchError as error:
                    watcher.ended(place, error)
                else:
                    one = LaunchedRun(config, _new_key(folder.parent), launcher.shared)
                    runs[one.key] = place, one
            claims.take(f"{SESSION}-{secrets.token_hex(8)}", "runs")
            cells = [
                PlannedCell(key=key, architecture=one.architecture, sort=one.stage, seconds=0.0)
                for key, (_, one) in runs.items()
            ]
            write_planned(folder, [PlannedStage(turns=False, cells=cells)])
            dispatch = Dispatch(launcher, claims, folder, RunRecord, (), gpus=gpus, cpus=cpus, note=watcher.note)
            units = [Unit([one], alone=timed) for _, one in runs.values()]
            try:
                for cell, record in dispatch.measured(units, None, lambda cell: watcher.note(f"{cell} has begun")):
                    place, one = runs[cell.key]
                    watcher.ended(place, _outcome(one, record, folder, watcher))
                    del runs[cell.key]
            except BaseException as error:
                dispatch.abandon("was interrupted" if isinstance(error, KeyboardInterrupt) else "ended")
                raise
    except BaseException:
        stays = connection.survives and folder.exists() and not (folder / CANCELLED).exists()
        if stays:
            said = f"archbench status {folder} shows them, archbench cancel {folder} ends them"
            watcher.note(f"{counted(len(runs), 'run')} may go on without this command: {said}.", needed=True)
        else:
            for _, one in runs.values():
                with contextlib.suppress(ArchbenchError):
                    if (begun := one.begun(folder)) is not None and not begun.finished and one.shared:
                        watcher.note(f"Continue {one} with: {begun.resume_command}", needed=True)
        raise
    finally:
        if not stays:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove the folders of commands of this machine that were killed, unless orders go on without them."""
    for folder in out.glob("launched-*"):
        owners = [claim.owner for claim in Claims(folder, Owner.this_process("local")).all()]
        if owners and all(one is not None and one.is_here and not one.lives and one.order is None for one in owners):
            shutil.rmtree(folder, ignore_errors=True)


def _needs(config: RunConfig) -> tuple[int, int, bool]:
    """CPUs and GPUs of a run, and whether nothing else may run beside it."""
    processes = config.nproc if isinstance(config.nproc, int) else 1
    on_gpu = config.device.startswith("cuda")
    cpus = config.threads or (GPU_THREADS if on_gpu else max(1, len(usable_cpus()) // processes))
    timed = not on_gpu and any(phase in TIMED for phase in config.phases)
    return cpus * processes, processes if on_gpu else 0, timed


def _new_key(out: Path) -> str:
    """A key whose first digits end no id of a run in the folder."""
    while True:
        key = secrets.token_hex(8)
        if not any(out.glob(f"*-{key[:DIGITS]}*")):
            return key


def _outcome(one: LaunchedRun, record: Any, folder: Path, watcher: Watcher) -> pd.DataFrame | ArchbenchError:
    """The rows of an ended run, which are in ``OUT`` from now on, or the error that ended it."""
    if not one.shared:
        _put(one.place(folder), folder.parent)
    on = f" on {record.host}" if record.host else ""
    after = "".join(f"; an earlier attempt {cause}" for cause in record.attempts)
    if record.outcome == "ok":
        watcher.note(f"{one} is done{on}{after}")
        return read_results(folder.parent / f"{record.run_id}.parquet", trials=True)
    if record.error is not None:
        watcher.note(f"{one} has failed{on}{after}")
        return from_dict(record.error)
    begun = one.begun(folder) if one.shared else None
    step = "Run the same command again" if begun is None else f"Continue with: {begun.resume_command}"
    return KilledError(str(one), f"its order {record.cause}", step)


def _put(place: Path, out: Path) -> None:
    """Move what a run without a view of ``OUT`` has sent there; its rows come last."""
    if place.is_dir():
        with storing(str(out), MAKE_ROOM):
            for path in sorted(place.iterdir(), key=lambda path: _LAST.find(path.suffix)):
                path.rename(out / path.name)
