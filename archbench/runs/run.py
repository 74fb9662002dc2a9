"""The order of a run: prepare, check, phase after phase, write."""

from __future__ import annotations

import dataclasses
import socket
import sys
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from archbench.config import ParallelName, RunConfig
from archbench.errors import ArchbenchError, ArchbenchWarning, StorageError, UsageError, refusal
from archbench.files.writing import set_aside
from archbench.interruption import continued
from archbench.measure.machine import device_name, driver_version, versions
from archbench.presentation.live_view import log
from archbench.presentation.quantities import duration
from archbench.presentation.step_view import StepView
from archbench.results.reading import read_results
from archbench.results.schema import FAILED, INTERRUPTED, Role
from archbench.results.store import run_table, write_run
from archbench.runs.conformance import CHECK, conformance, read_findings, require_conformance, take_over
from archbench.runs.device import resolve_device
from archbench.runs.folder import EVAL, RunFolder, open_run
from archbench.runs.launched import led
from archbench.runs.models import load_architecture
from archbench.runs.passed_checks import recall
from archbench.runs.phase import run_phase
from archbench.runs.preparation import start
from archbench.runs.ranks import resolved_ranks
from archbench.trackers.following import Trackers, followed_by
from archbench.trackers.tracker import Status

if TYPE_CHECKING:
    import pandas as pd


def run(
    config: RunConfig,
    *,
    quiet: bool = False,
    checked_by: Path | None = None,
    role: Role | None = None,
    digits: str | None = None,
) -> pd.DataFrame:
    """Measure one architecture once: all of ``config.phases``, each in a child process.

    Args:
        config: the frozen configuration.
        quiet: print no progress to standard error.
        checked_by: folder of a finished run; if it has the same model, its conformance checks are copied. Without,
            those of an earlier run of the same model and code are (:mod:`archbench.runs.passed_checks`).
        role: what a study runs it for.
        digits: six hex digits that end the run's id, for whoever looks for it; None for random ones.

    Returns:
        The run's rows; the same as ``read_results(path_of_its_parquet_file)``.

    Raises:
        ConformanceError: the architecture fails the conformance checks; nothing else was measured.
        ArchbenchError: another error ended the run; it is stored as a row, after those of the finished phases.
        KeyboardInterrupt: a signal did; it is stored as well. A note says how to continue the run.
    """
    with followed_by(config.trackers, quiet=quiet) as trackers:
        folder = start(config, role, digits)
        with folder.owned(), continued(_continuation(folder)):
            if checked_by is not None and config.checked:
                take_over(checked_by, folder)
            if config.checked is True and read_findings(folder) is None and (passed := recall(folder)) and not quiet:
                log(f"{config.architecture} {config.preset}: passed the conformance checks in run {passed}", sys.stderr)
            return _measure(folder, trackers, quiet=quiet)


def resume(
    architecture: str,
    run_id: str,
    out: str | Path = "results",
    *,
    time_limit: float | None = None,
    nproc: int | Literal["auto"] | None = None,
    parallel: ParallelName | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Continue a run that was interrupted or failed: finished phases are kept, training resumes from a checkpoint.

    Args:
        architecture: the run's, as a safeguard.
        run_id: the run's, or ``last`` for the newest under ``out``.
        out: folder of the results.
        time_limit: seconds for each remaining phase; None for the run's own limit.
        nproc: processes that train together from now on; None for as many as before.
        parallel: what they share; None for what they shared before.
        quiet: print no progress to standard error.

    Raises:
        UnknownNameError: no such run under ``out``.
        UsageError: the run is finished, still running, of another architecture, or was started with another torch or
            plugin.
        UntrustedCodeError: its folder names plugin files that the user of this machine has not named.
        ArchbenchError: as :func:`run`.
    """
    folder = open_run(out, run_id)
    if folder.config.architecture != architecture:
        raise UsageError(
            f"run {folder.run_id}",
            f"its architecture is {folder.config.architecture}, not {architecture}",
            f"Use: {folder.resume_command}",
        )
    with folder.owned():
        _refuse_other(folder)
        changes = {"time_limit": time_limit, "nproc": nproc or (1 if led() else None), "parallel": parallel}
        config = folder.config.override(**{name: value for name, value in changes.items() if value is not None})
        if config.nproc == 1:
            config = config.override(parallel="ddp", scaling_efficiency=False)
        folder = dataclasses.replace(folder, config=resolved_ranks(config))
        with followed_by(folder.config.trackers, quiet=quiet) as trackers, continued(_continuation(folder)):
            return _measure(folder, trackers, quiet=quiet)


def _refuse_other(folder: RunFolder) -> None:
    """Raise a UsageError if the run is finished, or this is another torch or plugin than it was started with."""
    if folder.finished:
        results = folder.path.with_suffix(".parquet")
        raise UsageError(f"run {folder.run_id}", "it is finished", f"Read it with: archbench results {results}")
    architecture = folder.config.architecture
    started, now = folder.facts["versions"]["torch_version"], versions()["torch_version"]
    if started != now:
        raise UsageError(
            f"run {folder.run_id}", f"it was started with torch {started}, and this is {now}", "Start a new run"
        )
    measured, found = folder.facts["plugin_version"], load_architecture(folder)[0].version
    if measured != found:
        cause = f"it was started with version {measured} of {architecture}, and this is {found}"
        raise UsageError(f"run {folder.run_id}", cause, "Start a new run")


def _continuation(folder: RunFolder) -> str:
    return f"Continue with: {folder.resume_command}"


def _measure(folder: RunFolder, trackers: Trackers, *, quiet: bool) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    phase = CHECK
    status: Status = "failed"
    trackers.start(folder.run_id, folder.as_dict(), folder.path)
    try:
        for phase in _phases(folder):
            finished = folder.rows_file(phase).exists()
            rows += _kept_rows(folder, phase) if finished else _shown_phase(folder, phase, quiet=quiet)
            if phase == CHECK:
                require_conformance(folder)
            if any(row["metric"] == "diverged" for row in rows):
                break  # speed and quality of a diverged model cannot be compared
        written = _write(folder, rows)
        status = "finished"
    except Exception as error:
        known = folder.resumable(error if isinstance(error, ArchbenchError) else refusal(error, f"phase {phase}"))
        if folder.has_vanished:
            known = StorageError(str(folder.path), "it has vanished while the run was measured", "Start a new run")
        if known is None:
            raise
        if not isinstance(known, StorageError):  # which is a failure that could not be stored either
            _record_end(folder, rows, phase, FAILED, f"{type(known).__name__}: {known.culprit}: {known.cause}")
        raise known from (error if known is not error else error.__cause__)
    except KeyboardInterrupt as interruption:
        status = "interrupted"
        if not folder.finished:
            _record_end(folder, rows, phase, INTERRUPTED, f"Interrupted: by {str(interruption) or 'SIGINT'}")
        interruption.add_note(_continuation(folder))
        raise
    finally:
        trackers.finish(rows, status)
    return read_results(written, trials=True)


def _shown_phase(folder: RunFolder, phase: str, *, quiet: bool) -> list[dict[str, Any]]:
    """Measure a phase with a view of it.

    The process that trains draws its own, which has the loss; while prefill and decoding are timed, nothing is redrawn.
    """
    config, every = folder.config, _phases(folder)
    name = f"{config.architecture} {config.preset}, {phase}"
    place = f"phase {every.index(phase) + 1} of {len(every)}"
    start = time.monotonic()
    with StepView(shown=not quiet and phase != "train", still=phase in ("prefill", "decode", "serve")) as steps:
        steps.at(f"{name}: {place}")
        rows = run_phase(folder, phase, partial(_show_checks, steps, name), quiet=quiet)
    last = {row["metric"]: row["value"] for row in rows if row["phase"] == phase and row["value"] is not None}
    found = ""
    if phase == "train" and {"loss", "tokens_per_second"} <= last.keys():
        found = f", last loss {last['loss']:.3f}, {last['tokens_per_second']:,.0f} tokens/s"
    if not quiet:
        log(f"{name}: done in {duration(time.monotonic() - start)}{found} ({place})", sys.stderr)
    return rows


def _show_checks(steps: StepView, name: str, message: Mapping[str, Any]) -> None:
    """Say how long the checks will take where that is long, and which one runs."""
    if "work" in message:
        steps.predict(message["seconds"])
        steps.view.say(f"{name}: {message['work']}, about {duration(message['seconds'])}")
    elif (running := message.get("findings", {}).get("running")) is not None:
        steps.begun(f"{name}: {running}", len(message["findings"]["results"]) + 1, message["checks"])


def rows_of_phases(folder: RunFolder) -> list[dict[str, Any]]:
    """All rows of a finished run, as its folder keeps them.

    Raises:
        StorageError: those of a phase are missing or damaged.
        ConformanceError: the architecture fails the conformance checks, so that no phase was measured.
    """
    rows: list[dict[str, Any]] = []
    for phase in _phases(folder):
        rows += _kept_rows(folder, phase)
        if phase == CHECK:
            require_conformance(folder)
        if any(row["metric"] == "diverged" for row in rows):
            break
    return rows


def add_evaluation(folder: RunFolder, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Add rows of the phase ``eval`` to a finished run, in place of earlier ones of the same tasks and shots.

    Returns:
        All rows of the run.

    Raises:
        StorageError, ConformanceError: as :func:`rows_of_phases`, or it cannot be written.
    """
    again = {(row["corpus"], row["shots"]) for row in rows}
    kept = folder.read_rows(EVAL) if folder.rows_file(EVAL).exists() else []
    folder.write_rows(EVAL, [*(row for row in kept if (row["corpus"], row["shots"]) not in again), *rows])
    with folder.storing(folder.path.with_suffix(".parquet")):
        return read_results(_write(folder, rows_of_phases(folder), extend=True), trials=True)


def _kept_rows(folder: RunFolder, phase: str) -> list[dict[str, Any]]:
    """The rows of a finished phase, which can be stored.

    Raises:
        StorageError: their file is damaged, or one of them is no row of results; the file is named.
    """
    rows = folder.read_rows(phase)
    try:
        run_table(folder.run_id, rows, _common(folder))
    except StorageError as error:
        file, step = folder.rows_file(phase), f"Delete it to measure that phase again, with: {folder.resume_command}"
        raise StorageError(f"{file}, {error.culprit}", error.cause, step) from error
    return rows


def write_again(folder: RunFolder) -> Path:
    """Write the results of a finished run from the rows of its phases; a damaged file is set aside.

    Raises:
        StorageError, ConformanceError: as :func:`rows_of_phases`, or it cannot be written.
        UsageError: another process measures the run.
    """
    rows, results = rows_of_phases(folder), folder.path.with_suffix(".parquet")
    with folder.owned(), folder.storing(results):
        if results.exists():
            set_aside(results)  # killed here, the run is resumed from the same rows
        return _write(folder, rows)


def _phases(folder: RunFolder) -> tuple[str, ...]:
    evaluated = (EVAL,) if folder.rows_file(EVAL).exists() else ()
    return ((CHECK,) if folder.config.checked else ()) + folder.config.phases + evaluated


def _write(folder: RunFolder, rows: list[dict[str, Any]], *, extend: bool = False) -> Path:
    # A resumed run replaces the record of its failure.
    place, config = folder.path.parent, folder.as_dict()
    return write_run(place, folder.run_id, rows, config, _common(folder), replace=True, extend=extend)


def _record_end(folder: RunFolder, rows: list[dict[str, Any]], phase: str, metric: str, how: str) -> None:
    """Store the rows of the finished phases, and a row that says how the run ended."""
    last = {**_where(folder, rows), "phase": phase, "metric": metric, "unit": "1", "status": " ".join(how.split())}
    try:
        _write(folder, [*rows, last])
        if phase == CHECK:  # a resumed run is checked again
            folder.rows_file(CHECK).unlink(missing_ok=True)
    except (StorageError, OSError) as storage:
        warnings.warn(f"the end of this run could not be recorded: {storage}", ArchbenchWarning, stacklevel=2)


def _where(folder: RunFolder, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns about the machine: from the finished phases, or from this process."""
    names = ("device", "device_name", "host", "driver", "threads", "malloc", "parameters", *versions())
    if rows:
        return {name: rows[-1].get(name) for name in names}
    device = resolve_device(folder.config.device)
    threads = folder.config.threads or torch.get_num_threads()
    here = {"host": socket.gethostname(), "driver": driver_version(device)}
    return {**versions(), **here, "device": device.type, "device_name": device_name(device), "threads": threads}


def _common(folder: RunFolder) -> dict[str, Any]:
    """The columns that belong to the whole run."""
    config, facts = folder.config, folder.facts
    return {
        "architecture": config.architecture,
        "plugin_package": facts["plugin_package"],
        "plugin_version": facts["plugin_version"],
        "plugin_revision": facts.get("plugin_revision"),  # earlier archbenches started runs without
        "role": facts.get("role"),
        "preset": config.preset,
        "config_hash": config.config_hash(),
        "seed": config.seed,
        "dtype": config.dtype,
        "compile": config.compile,
        "context_length": folder.model["context_length"],
        "corpus": facts["corpus"],
        "tokenizer": facts["tokenizer"],
        "lossless": facts["lossless"],
        "conformance": conformance(folder),
    }
