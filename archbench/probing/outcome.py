"""From trials to the outcome: ``runs.parquet`` with the scores' rows, ``probe.json`` with all that was tried."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from archbench.compare.files import heading
from archbench.compare.files import write_outcome as write_files
from archbench.data.tasks import Task
from archbench.measure.machine import device_name, versions
from archbench.probing.contenders import Contender
from archbench.probing.plan import FORMAT, PROBE, ProbePlan
from archbench.probing.trials import Trial, TrialRecord, budget_of
from archbench.results.schema import UNCHECKED
from archbench.results.store import run_table
from archbench.testing.checks import LEVEL

SOLVED = 0.99
"""Accuracy of every seed of a task that is solved."""

LEARNT = 0.1
"""Least share of the way from a guess to all answers that counts as having learnt something."""

Verdict = Literal["solved", "partly learned", "not learned under this budget", "not measured"]


@dataclass(frozen=True)
class Score:
    """One architecture on one condition of one task.

    Attributes:
        learning_rate: the one of those tried at which its seeds answered most validation examples; None where all
            trials failed.
        values: accuracy on the test examples, a seed each; 0 for a seed that diverged.
        mean, low, high: of these; None where there is none.
        updates: of the longest of these trainings.
        cpu_seconds: mean of these trainings; None where there is none.
        state_bytes: what decoding keeps of one sequence of the task's longest example; None: it has no cache.
    """

    architecture: str
    task: str
    condition: str
    chance: float
    verdict: Verdict
    values: tuple[float, ...]
    mean: float | None
    low: float | None
    high: float | None
    learning_rate: float | None
    updates: int
    cpu_seconds: float | None
    state_bytes: int | None


@dataclass(frozen=True)
class Measured:
    """All that a probe has measured; trials each with their record."""

    plan: ProbePlan
    folder: Path
    command: str
    tasks: Sequence[Task]
    contenders: Sequence[Contender]
    trials: Sequence[tuple[Trial, TrialRecord]]
    predicted_seconds: float
    measured_seconds: float


def write_outcome(measured: Measured) -> dict[str, Any]:
    """Choose learning rates, judge, and write both files; what ``probe.json`` holds.

    Raises:
        StorageError: they cannot be written.
    """
    plan, now = measured.plan, versions()
    machine = {"device": plan.device.partition(":")[0], "device_name": device_name(plan.device)}
    scores: list[Score] = []
    tables: list[pa.Table] = []
    for one in measured.contenders:
        if one.reason is not None:
            continue
        for task in measured.tasks:
            found = _chosen(measured, one.architecture, task)
            scores += [_score(one, task, condition, found) for condition in task.tests]
            tables += [
                run_table(
                    record.run_id, _rows(one, task, trial, record), {**now, **machine, **_common(one, task, trial)}
                )
                for trial, record in found
                if record.test
            ]
    outcome = {
        **heading(FORMAT, measured.command, now),
        "machine": {**machine, **{name: now[name] for name in ("torch_version", "python_version")}},
        "plan": plan.model_dump(mode="json"),
        "seconds": {"predicted": measured.predicted_seconds, "measured": measured.measured_seconds},
        "tasks": [_task(plan, task) for task in measured.tasks],
        "models": [_model(one) for one in measured.contenders],
        "scores": [asdict(score) for score in scores],
        "trials": [_trial(trial, record) for trial, record in measured.trials],
    }
    write_files(measured.folder, tables, PROBE, outcome)
    return outcome


def verdict_of(values: Sequence[float], chance: float) -> Verdict:
    """What seeds' accuracies say: never that something cannot be learnt."""
    if not values:
        return "not measured"
    if min(values) >= SOLVED:
        return "solved"
    share = (statistics.mean(values) - chance) / (1 - chance)
    return "partly learned" if share >= LEARNT else "not learned under this budget"


def _chosen(measured: Measured, architecture: str, task: Task) -> list[tuple[Trial, TrialRecord]]:
    """The trials at the learning rate whose seeds, on average, answered most validation examples of all conditions.

    A seed that diverged answered none; one that failed by an error has no say, and a rate of which all failed is out.
    """
    own: dict[float, list[tuple[Trial, TrialRecord]]] = {}
    for trial, record in measured.trials:
        if trial.architecture == architecture and trial.task == task.name and record.outcome != "failed":
            own.setdefault(trial.learning_rate, []).append((trial, record))
    if not own:
        return []
    return max(own.values(), key=lambda trials: statistics.mean(_answered(record) for _, record in trials))


def _answered(record: TrialRecord) -> float:
    return statistics.mean(record.validation.values()) if record.outcome == "ok" else 0.0


def _score(one: Contender, task: Task, condition: str, found: Sequence[tuple[Trial, TrialRecord]]) -> Score:
    records = [record for _, record in found]
    values = tuple(record.test.get(condition, 0.0) for record in records)
    chance = task.chance[condition]
    return Score(
        architecture=one.architecture,
        task=task.name,
        condition=condition,
        chance=chance,
        verdict=verdict_of(values, chance),
        values=values,
        mean=statistics.mean(values) if values else None,
        low=min(values, default=None),
        high=max(values, default=None),
        learning_rate=found[0][0].learning_rate if found else None,
        updates=max((record.updates for record in records), default=0),
        cpu_seconds=statistics.mean(record.cpu_seconds for record in records) if records else None,
        state_bytes=one.sizes[task.name].state_bytes,
    )


def _rows(one: Contender, task: Task, trial: Trial, record: TrialRecord) -> list[dict[str, Any]]:
    """The tidy rows of a trial that counts."""
    rows: list[dict[str, Any]] = []
    for condition, value in record.test.items():
        rows.append({"metric": "accuracy", "operation": condition, "value": value})
        rows.append({"metric": "chance", "operation": condition, "value": task.chance[condition]})
    rows += [
        {"metric": "state_bytes", "value": one.sizes[task.name].state_bytes},
        {"metric": "learning_rate", "value": trial.learning_rate},
        {"metric": "updates", "value": record.updates},
        {"metric": "cpu_seconds", "value": record.cpu_seconds},
    ]
    return [{**row, "malloc": record.malloc} for row in rows]


def _common(one: Contender, task: Task, trial: Trial) -> dict[str, Any]:
    """The columns that are the same in all rows of a trial."""
    plan = trial.plan
    shape = json.dumps([plan.digest(), one.architecture, dict(one.overrides)], sort_keys=True, default=str)
    return {
        "phase": "probe",
        "architecture": one.architecture,
        "plugin_package": one.package,
        "plugin_version": one.version,
        "preset": plan.preset,
        "config_hash": hashlib.sha256(shape.encode()).hexdigest()[:12],
        "seed": trial.seed,
        "dtype": plan.dtype,
        "compile": False,
        "threads": plan.threads,
        "batch_size": task.batch_size,
        "context_length": task.context_length,
        "parameters": one.sizes[task.name].parameters,
        "corpus": task.name,
        "conformance": str(LEVEL) if plan.checked else UNCHECKED,
    }


def _task(plan: ProbePlan, task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "summary": task.summary,
        "source": task.source,
        "conditions": list(task.tests),
        "vocab_size": task.vocab_size,
        "context_length": task.context_length,
        "updates": budget_of(plan, task),
        "batch_size": task.batch_size,
    }


def _model(one: Contender) -> dict[str, Any]:
    return {
        "architecture": one.architecture,
        "reason": one.reason,
        "overrides": dict(one.overrides),
        "sizes": {name: asdict(size) for name, size in one.sizes.items()},
    }


def _trial(trial: Trial, record: TrialRecord) -> dict[str, Any]:
    return {
        "architecture": trial.architecture,
        "task": trial.task,
        "learning_rate": trial.learning_rate,
        "seed": trial.seed,
        **asdict(record),
    }
