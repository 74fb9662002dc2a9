"""From cells to the outcome: ``runs.parquet`` with all rows, ``comparison.json`` with what they say."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from archbench.compare.cells import Cell, Record, rows_of, run_folder
from archbench.compare.costs import cost_curves, cost_rows, exact_rows, positions
from archbench.compare.files import heading, write_outcome
from archbench.compare.learning_rates import Curve
from archbench.compare.plan import COMPARISON, FORMAT, TUNING, ComparePlan
from archbench.compare.stages import Contender
from archbench.compare.verdicts import QualityRow, Scores, judge
from archbench.errors import StorageError
from archbench.measure.machine import versions
from archbench.results.schema import arrow_schema

FEWEST_DOCUMENTS = 30
"""With fewer documents their blocks of 512 tokens are resampled instead (a block bootstrap: Künsch 1989)."""


@dataclass(frozen=True)
class Measured:
    """All that a comparison has measured.

    Attributes:
        cells: each with its record, in the order in which they were run.
        curves: the search for its learning rate, by architecture.
        looks: seeds and margin of each time that a verdict was read.
        budget: of one run; one of flops, tokens, seconds -> its amount.
    """

    plan: ComparePlan
    folder: Path
    command: str
    contenders: list[Contender]
    budget: dict[str, float]
    curves: Mapping[str, Curve]
    looks: list[dict[str, Any]]
    cells: list[tuple[Cell, Record]]
    predicted_seconds: float
    measured_seconds: float


def write_comparison(measured: Measured) -> dict[str, Any]:
    """Judge, and write both files; what ``comparison.json`` holds.

    Raises:
        StorageError: a cell's rows cannot be read, or the files not written.
    """
    plan, frames = measured.plan, _frames(measured)
    names = [one.architecture for one in measured.contenders if one.matched]
    cells = {stage: [cell for cell, _ in measured.cells if cell.stage == stage] for stage in ("seed", "speed", "cost")}
    causes = {record.key: record.cause or "" for _, record in measured.cells if record.outcome != "ok"}
    scores, units = _scores(measured, names)
    first, *others = sorted(scores, key=lambda one: one.architecture != plan.baseline)
    quality = sorted(judge(first, others, margin=plan.margin), key=lambda row: names.index(row.architecture))
    costs = cost_rows(cells["speed"], frames, plan.baseline, names)
    state = {one.architecture: one.size.state_bytes for one in measured.contenders if one.matched and one.size}
    costs += exact_rows("state", "decoding state at the trained context", "B", state, plan.baseline)
    outcome = {
        **_common(measured, frames),
        "quality": [asdict(row) for row in quality],
        "units": units,
        "spent": [_spent(name, cells["seed"], frames) for name in names],
        "costs": [asdict(row) for row in costs],
        "curves": cost_curves(cells["cost"], frames, causes),
        "positions": positions(cells["seed"], frames),
        "looks": measured.looks,
        "conclusion": conclusion(plan, quality),
    }
    _write(measured, frames, COMPARISON, outcome)
    return outcome


def write_tuning(measured: Measured) -> dict[str, Any]:
    """Write the learning-rate curves; what ``tuning.json`` holds.

    Raises:
        StorageError: as :func:`write_comparison`.
    """
    frames = _frames(measured)
    outcome = _common(measured, frames)
    _write(measured, frames, TUNING, outcome)
    return outcome


def conclusion(plan: ComparePlan, quality: list[QualityRow]) -> str:
    """The verdict in a sentence for each architecture."""
    sentences = []
    for row in quality:
        if row.verdict == "baseline":
            continue
        if row.difference is None or row.combined_low is None or row.combined_high is None:
            sentences.append(f"{row.architecture}: {row.verdict} ({row.reason}).")
            continue
        more = "fewer" if row.difference < 0 else "more"
        change = f"{abs(row.difference):.2%} {more} bits per byte than {plan.baseline}"
        interval = f"95 % interval {row.combined_low:+.2%} to {row.combined_high:+.2%}"
        why = f"; {row.reason}" if row.reason else ""
        seeds = f"; {row.seeds_needed} seeds each should decide it" if row.seeds_needed else ""
        sentences.append(f"{row.architecture}: {row.verdict}, {change} ({interval}{why}{seeds}).")
    return " ".join(sentences)


def _common(measured: Measured, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    plan = measured.plan
    baseline = next(one for one in measured.contenders if one.architecture == plan.baseline)
    row = next(iter(frames.values())).iloc[0]
    now = versions()
    return {
        **heading(FORMAT, measured.command, now),
        "machine": {
            name: None if pd.isna(row[name]) else getattr(row[name], "item", lambda: row[name])()  # noqa: B023
            for name in ("device", "device_name", "torch_version", "python_version", "malloc")
        },
        "plan": plan.summary(baseline.context_length, measured.budget),
        "seconds": {"predicted": measured.predicted_seconds, "measured": measured.measured_seconds},
        "models": [_model(one) for one in measured.contenders],
        "cells": [_cell(cell, record) for cell, record in measured.cells],
        "tuning": [curve.as_plain() for curve in measured.curves.values()],
    }


def _model(one: Contender) -> dict[str, Any]:
    size = asdict(one.size) if one.size is not None else {}
    return {
        "architecture": one.architecture,
        "matched": one.matched,
        "reason": one.reason,
        "overrides": dict(one.overrides),
        **{
            name: size.get(name)
            for name in (
                "parameters", "active_parameters", "non_embedding_active_parameters", "training_flops_per_token",
                "forward_flops_per_token", "state_bytes",
            )
        },
        "deviation": one.deviation,
    }  # fmt: skip


def _cell(cell: Cell, record: Record) -> dict[str, Any]:
    trained = "train" in cell.config.phases
    return {
        "key": cell.key,
        "stage": cell.stage,
        "architecture": cell.architecture,
        "seed": cell.config.seed,
        "learning_rate": cell.config.training.learning_rate if trained else None,
        "factor": cell.factor,
        "block": cell.block,
        "repeated": cell.repeated,
        "context_length": cell.context_length,
        "run_id": record.run_id,
        "outcome": record.outcome,
        "cause": record.cause,
        "seconds": record.seconds,
    }


def _frames(measured: Measured) -> dict[str, pd.DataFrame]:
    """The rows of every cell that ended well, by its key."""
    return {cell.key: rows_of(measured.folder, record) for cell, record in measured.cells if record.outcome == "ok"}


def unit_scores(folder: Path, finished: Mapping[str, list[Record]]) -> tuple[dict[str, Scores], dict[str, Any]]:
    """Bits per byte and nats of every unit, of each finished seed; and what the units are.

    Units are the documents of the validation text, empty ones left out; where there are fewer than
    :data:`FEWEST_DOCUMENTS`, their blocks.

    Raises:
        StorageError: a run's scores cannot be read.
    """
    documents = {name: [_table(folder, one, "documents") for one in records] for name, records in finished.items()}
    some = next((tables[0] for tables in documents.values() if tables), None)
    filled = np.zeros(0, dtype=bool) if some is None else (some["bytes"] > 0).to_numpy()
    by_document = int(filled.sum()) >= FEWEST_DOCUMENTS
    scores, count = {}, 0
    for name, records in finished.items():
        if by_document:
            units = [table["nats"].to_numpy()[filled] for table in documents[name]]
        else:
            units = [_table(folder, one, "blocks")["nats"].to_numpy() for one in records]
        count = max(count, *(len(one) for one in units), 0)
        nats: npt.NDArray[np.float64] = np.stack(units) if units else np.zeros((0, count))
        bits = [_bits(table) for table in documents[name]]
        scores[name] = Scores(name, bits, nats, np.ones(nats.shape[1]))
    kind = "documents" if by_document else "blocks"
    return scores, {"kind": kind, "count": count, "empty": int((~filled).sum())}


def _scores(measured: Measured, names: list[str]) -> tuple[list[Scores], dict[str, Any]]:
    """Those of the comparison, with what became of the seeds that did not finish."""
    records: dict[str, list[Record]] = {name: [] for name in names}
    for cell, record in measured.cells:
        if cell.stage == "seed" and cell.architecture in records:
            records[cell.architecture].append(record)
    ended = {name: Counter(record.outcome for record in own) for name, own in records.items()}
    finished = {name: [record for record in own if record.outcome == "ok"] for name, own in records.items()}
    scores, units = unit_scores(measured.folder, finished)
    counted = [
        replace(
            scores[name],
            diverged=ended[name]["diverged"],
            lost=ended[name]["failed"],
            flagged=measured.curves[name].flagged,
        )
        for name in names
    ]
    return counted, units


def _bits(documents: pd.DataFrame) -> float:
    return float(documents["nats"].sum() / np.log(2) / documents["bytes"].sum())


def _table(folder: Path, record: Record, name: str) -> pd.DataFrame:
    file = run_folder(folder, record) / f"{name}.parquet"
    try:
        return pd.read_parquet(file)
    except (OSError, pa.ArrowException) as error:
        step = f"Delete {folder / 'cells' / record.key}.json, to measure that cell again"
        raise StorageError(str(file), f"it cannot be read ({error})", step) from error


def _spent(name: str, cells: list[Cell], frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Medians over seeds of what training took."""
    tokens: list[float] = []
    flops: list[float] = []
    seconds: list[float] = []
    for cell in cells:
        if cell.architecture == name and cell.key in frames:
            frame = frames[cell.key]
            trained = frame[frame.phase == "train"]
            rows = trained.drop_duplicates("metric").set_index("metric")
            tokens.append(float(rows.tokens_seen["training_seconds"]))
            flops.append(tokens[-1] * float(rows.value["flops_per_token"]))
            seconds.append(float(rows.value["training_seconds"]))
    values = {"training_tokens": tokens, "training_flops": flops, "training_seconds": seconds}
    return {"architecture": name, **{key: statistics.median(each) if each else None for key, each in values.items()}}


def _write(measured: Measured, frames: Mapping[str, pd.DataFrame], name: str, outcome: dict[str, Any]) -> None:
    # A run that diverged tells nothing but its curve; no row here is read for the verdict.
    diverged = [rows_of(measured.folder, record) for _, record in measured.cells if record.outcome == "diverged"]
    every = [*frames.values(), *diverged]
    tables = [pa.Table.from_pandas(frame, schema=arrow_schema(), preserve_index=False) for frame in every]
    write_outcome(measured.folder, tables, name, outcome)
