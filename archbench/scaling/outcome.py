"""From a ladder's cells to the outcome: ``runs.parquet`` with all rows, ``scale.json`` with what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from archbench.compare.cells import Cell, Record, rows_of
from archbench.compare.files import heading, write_outcome
from archbench.compare.learning_rates import Curve
from archbench.data.dataset import prepare
from archbench.measure.machine import device_name, versions
from archbench.plugin.registry import load
from archbench.results.schema import arrow_schema
from archbench.scaling.findings import Finding, Point, find, rank
from archbench.scaling.ladder import Rung
from archbench.scaling.law import Fit
from archbench.scaling.plan import FORMAT, SCALE, ScalePlan

Cells = Sequence[tuple[Cell, Record]]


@dataclass(frozen=True)
class Measured:
    """All that a ladder has measured; cells each with their record, by architecture and size."""

    plan: ScalePlan
    folder: Path
    command: str
    rungs: Sequence[Rung]
    curves: Mapping[tuple[str, int], Curve]
    trials: Mapping[tuple[str, int], Cells]
    points: Mapping[tuple[str, int], Cells]
    predicted_seconds: float
    measured_seconds: float


def write_scale(measured: Measured) -> dict[str, Any]:
    """Fit, test, compare, and write both files; what ``scale.json`` holds.

    Raises:
        StorageError: a cell's rows cannot be read, or the files not written.
    """
    plan, now = measured.plan, versions()
    text = len(prepare(plan.run.data).train)
    cells = [one for group in (measured.trials, measured.points) for own in group.values() for one in own]
    frames = {record.key: rows_of(measured.folder, record) for _, record in cells if record.outcome != "failed"}
    findings = [_finding(measured, name, frames, text) for name in plan.architectures]
    found = [finding for finding in findings if finding.points]
    ranking, unranked = rank(found)
    outcome = {
        **heading(FORMAT, measured.command, now),
        "machine": {
            "device": plan.run.device.partition(":")[0],
            "device_name": device_name(plan.run.device),
            **{name: now[name] for name in ("torch_version", "python_version")},
        },
        "plan": {**plan.summary(measured.rungs[0].contender.context_length), "train_tokens": text},
        "seconds": {"predicted": measured.predicted_seconds, "measured": measured.measured_seconds},
        "rungs": [_rung(measured, rung, measured.curves.get(rung.key)) for rung in measured.rungs],
        "findings": [_plain(finding) for finding in found],
        "ranking": [asdict(one) for one in ranking],
        "unranked": unranked,
        "cells": [_cell(cell, record) for cell, record in cells],
    }
    tables = [pa.Table.from_pandas(frame, schema=arrow_schema(), preserve_index=False) for frame in frames.values()]
    write_outcome(measured.folder, tables, SCALE, outcome)
    return outcome


def _finding(measured: Measured, name: str, frames: Mapping[str, pd.DataFrame], text: int) -> Finding:
    points = []
    for rung in measured.rungs:
        if rung.architecture != name:
            continue
        by_budget: dict[int, list[tuple[Cell, Record]]] = {}
        for cell, record in measured.points.get(rung.key, ()):
            if record.outcome == "ok":
                assert cell.config.training.tokens is not None
                by_budget.setdefault(cell.config.training.tokens, []).append((cell, record))
        points += [_point(rung, budget, own, frames, text) for budget, own in by_budget.items()]
    return find(name, points)


def _point(rung: Rung, budget: int, cells: Cells, frames: Mapping[str, pd.DataFrame], text: int) -> Point:
    """The mean over the seeds that finished."""
    size = rung.contender.size
    assert size is not None
    losses, tokens = [], 0
    for _, record in cells:
        rows = frames[record.key]
        losses.append(float(rows[(rows.phase == "quality") & (rows.metric == "loss")].value.iloc[0]))
        trained = rows[(rows.phase == "train") & (rows.metric == "training_seconds")]
        tokens = int(trained.tokens_seen.iloc[0])
    return Point(
        size=rung.size,
        budget=budget,
        N=size.non_embedding_active_parameters,
        D=tokens,
        flops=tokens * size.training_flops_per_token,
        losses=tuple(losses),
        learning_rate=cells[0][0].config.training.learning_rate,
        epochs=tokens / text,
    )


def _plain(finding: Finding) -> dict[str, Any]:
    values = asdict(finding)
    values["points"] = [{**asdict(point), "loss": point.loss} for point in finding.points]
    values["fitted"] = _fit(finding.fitted)
    values["intervals"] = {
        name: {end: value if math.isfinite(value) else None for end, value in asdict(each).items()}
        for name, each in finding.intervals.items()
    }
    if finding.held_out is not None:
        values["held_out"]["fitted"] = _fit(finding.held_out.fitted)
    return values


def _fit(fitted: Fit | None) -> dict[str, Any] | None:
    return None if fitted is None else {**asdict(fitted), "exponent": fitted.law.exponent}


def _rung(measured: Measured, rung: Rung, found: Curve | None) -> dict[str, Any]:
    one, size = rung.contender, rung.contender.size
    return {
        "architecture": one.architecture,
        "size": rung.size,
        "reason": one.reason,
        "overrides": dict(one.overrides),
        "parameters": None if size is None else size.parameters,
        "non_embedding_active_parameters": None if size is None else size.non_embedding_active_parameters,
        "training_flops_per_token": None if size is None else size.training_flops_per_token,
        "state_bytes": None if size is None else size.state_bytes,
        **_shape(measured.plan, rung),
        "tuning": None if found is None else found.as_plain(),
    }


def _shape(plan: ScalePlan, rung: Rung) -> dict[str, int | None]:
    """Depth and width, where the architecture has fields of these names."""
    if rung.contender.size is None:
        return {"n_layer": None, "d_model": None}
    config = load(rung.architecture, plan.run.plugins).config(plan.run.preset, **rung.contender.overrides)
    return {name: getattr(config, name, None) for name in ("n_layer", "d_model")}


def _cell(cell: Cell, record: Record) -> dict[str, Any]:
    return {
        "key": cell.key,
        "stage": cell.stage,
        "architecture": cell.architecture,
        "tokens": cell.config.training.tokens,
        "seed": cell.config.seed,
        "learning_rate": cell.config.training.learning_rate,
        "run_id": record.run_id,
        "outcome": record.outcome,
        "cause": record.cause,
        "seconds": record.seconds,
    }
