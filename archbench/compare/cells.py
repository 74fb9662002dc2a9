"""The cells of a comparison: each is one run, kept in a folder named after all it depends on, and never run twice."""

from __future__ import annotations

import hashlib
import inspect
import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from archbench.compare.files import identity_key, read_record, write_record
from archbench.config import RunConfig
from archbench.errors import ArchbenchError, StorageError
from archbench.plugin.architecture import Architecture
from archbench.results.reading import read_results, run_failed
from archbench.runs.conformance import read_findings
from archbench.runs.folder import CONFIG, open_run
from archbench.runs.run import resume, run

Stage = Literal["pilot", "tune", "seed", "speed", "cost", "point"]
OutcomeName = Literal["ok", "diverged", "failed"]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        stage: what it is for: pilot (to predict the time), tune (a learning rate), seed (a fresh seed at the learning
            rate chosen), speed (one turn), cost (one context length),
            point (one of a scaling ladder).
        config: the whole run.
        key: 16 hex digits, equal for cells that measure the same with the same code.
        factor: tune: learning rate / the recipe's.
        block: speed: number of the sweep.
        context_length: T of the model.
        repeated: the baseline, measured a second time in the same sweep: the noise floor.
        checked_by: key of the cell whose conformance checks stand for this one's, where its model is the same.
    """

    stage: Stage
    config: RunConfig
    key: str
    context_length: int
    factor: float | None = None
    block: int | None = None
    repeated: bool = False
    checked_by: str | None = None

    @property
    def architecture(self) -> str:
        return self.config.architecture


@dataclass(frozen=True)
class Record:
    """What became of a cell.

    Attributes:
        key: the cell's.
        run_id: of its run; None where it ended before there was one.
        outcome: ok, diverged (the loss stopped being finite) or failed (an error ended it).
        cause: of a failure or divergence, in a clause.
        seconds: that it took, from start to end.
    """

    key: str
    run_id: str | None
    outcome: OutcomeName
    cause: str | None = None
    seconds: float = 0.0


def cell_key(config: RunConfig, source: str, **place: Any) -> str:
    """The key of a cell: its configuration, its place in the plan, and the code that it runs."""
    return identity_key(config=config.config_hash(), seed=config.seed, source=source, **place)


def source_digest(architecture: Architecture) -> str:
    """Of the plugin's file, so that an edited plugin is measured anew."""
    file = inspect.getsourcefile(architecture.info.config)
    text = Path(file).read_bytes() if file is not None else b""
    return architecture.version + hashlib.sha256(text).hexdigest()[:16]


def known_record(folder: Path, key: str) -> Record | None:
    """The record of a cell that is finished; None where it is still to be measured.

    Raises:
        StorageError: the record cannot be read.
    """
    return read_record(Record, folder, key)


def measure(cell: Cell, folder: Path) -> Record:
    """Run the cell, or go on with its run where an earlier process was killed; its record is kept in ``folder``.

    An error that ends the run is the cell's outcome; only where nothing can be stored it is raised.

    Raises:
        StorageError: the folder cannot be written.
    """
    out = _runs(folder, cell.key)
    start = time.monotonic()
    try:
        frame = _frame(cell, folder)
    except StorageError:
        raise
    except ArchbenchError as error:
        cause = f"{error.culprit}: {error.cause}"
        record = Record(cell.key, _run_id(out), "failed", cause)
    else:
        diverged = frame[frame.metric == "diverged"].value
        record = Record(cell.key, str(frame.run_id.iloc[0]), "ok")
        if len(diverged):
            cause = f"its loss was no longer finite at update {diverged.iloc[0]:.0f}"
            record = replace(record, outcome="diverged", cause=cause)
    record = replace(record, seconds=time.monotonic() - start)
    for checkpoints in out.glob("*/checkpoints"):  # of many runs: gigabytes that nobody will read
        shutil.rmtree(checkpoints)
    write_record(folder, record)
    return record


def rows_of(folder: Path, record: Record) -> pd.DataFrame:
    """The tidy rows of a cell's run; empty where it ended before there was one.

    Raises:
        StorageError: they cannot be read.
    """
    files = sorted(_runs(folder, record.key).glob("*.parquet"))
    return read_results(files)


def run_folder(folder: Path, record: Record) -> Path:
    """Where the cell's run keeps its scores by document and block."""
    assert record.run_id is not None
    return _runs(folder, record.key) / record.run_id


def bits_per_byte(folder: Path, record: Record) -> float | None:
    """Of the validation text; infinity where the run diverged, None where it failed.

    Raises:
        StorageError: its rows cannot be read.
    """
    if record.outcome != "ok":
        return math.inf if record.outcome == "diverged" else None
    frame = rows_of(folder, record)
    return float(frame[(frame.phase == "quality") & (frame.metric == "bits_per_byte")].value.iloc[0])


def check_seconds(folder: Path, record: Record) -> float:
    """What the conformance checks of the cell's run took, without their process; 0 where there were none."""
    path = run_folder(folder, record)
    findings = read_findings(open_run(path.parent, path.name))
    return 0.0 if findings is None else sum(float(result["seconds"]) for result in findings.results)


def _frame(cell: Cell, folder: Path) -> pd.DataFrame:
    """The rows of the cell's run: run now, or to its end, or read where only the record is missing."""
    out = _runs(folder, cell.key)
    finished = sorted(out.glob("*.parquet"))
    if finished and not run_failed(finished[-1]):
        return read_results(finished[-1])
    if (run_id := _run_id(out)) is not None:
        return resume(cell.architecture, run_id, out, time_limit=cell.config.time_limit, quiet=True)
    checked = known_record(folder, cell.checked_by) if cell.checked_by is not None else None
    checked_by = run_folder(folder, checked) if checked is not None and checked.outcome == "ok" else None
    return run(cell.config.override(out=str(out)), quiet=True, checked_by=checked_by)


def _run_id(out: Path) -> str | None:
    started = sorted(path.parent.name for path in out.glob(f"*/{CONFIG}"))
    return started[-1] if started else None


def _runs(folder: Path, key: str) -> Path:
    return folder / "runs" / key
