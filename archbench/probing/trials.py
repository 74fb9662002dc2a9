"""One training on one task, with one learning rate and seed: measured once, kept by a key of all it depends on."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from archbench.compare.files import identity_key, read_record, write_record
from archbench.config import ModelConfig, TrainingConfig
from archbench.data.tasks import Task, TaskSampler
from archbench.errors import ArchbenchError, ConformanceError, one_line
from archbench.measure.accuracy import accuracy
from archbench.measure.clock import clock_for
from archbench.measure.malloc import tune_malloc
from archbench.plugin.architecture import Architecture
from archbench.plugin.registry import load, load_tasks
from archbench.probing.plan import ProbePlan
from archbench.results.store import new_run_id
from archbench.runs.device import resolve_device
from archbench.runs.models import build_model
from archbench.training.loop import train
from archbench.training.state import TrainState

VALIDATED = 100
"""Examples of each condition by which a learning rate is chosen, and a training found to be finished."""

VALIDATIONS = 10
"""Looks at them during a training."""

RECIPE = {"warmup_fraction": 0.1, "weight_decay": 0.0, "schedule": "wsd", "betas": (0.9, 0.98)}
"""Of every training; the rest is :class:`archbench.config.TrainingConfig`'s own."""

FINISHED = 0.995
"""Accuracy on the validation examples of every condition at which a training ends before its budget."""

PILOT_UPDATES = 6
PILOT_EXAMPLES = 64

Kind = Literal["pilot", "trial"]


@dataclass(frozen=True)
class Trial:
    """A training of a probe, or its pilot.

    Attributes:
        stage: pilot: a few updates, to predict the time, and the conformance checks; trial: the whole.
        overrides: fields of the architecture's preset that are replaced.
        key: 16 hex digits, equal for trials that measure the same with the same code.
    """

    stage: Kind
    plan: ProbePlan
    architecture: str
    overrides: Mapping[str, Any]
    task: str
    learning_rate: float
    seed: int
    key: str


@dataclass(frozen=True)
class TrialRecord:
    """What became of a trial.

    Attributes:
        outcome: ok, diverged (the loss stopped being finite) or failed (an error ended it).
        cause: of a failure or divergence, in a clause.
        seconds: from start to end.
        cpu_seconds: of all threads; of a pilot: of one whole trial, as predicted.
        updates: that were made; fewer than the budget where the validation examples were answered before.
        malloc: how the memory allocator was set.
        validation, test: condition -> accuracy.
    """

    key: str
    run_id: str
    outcome: Literal["ok", "diverged", "failed"]
    cause: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    updates: int = 0
    malloc: str | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)


def trial_key(plan: ProbePlan, task: Task, source: str, **place: Any) -> str:
    """The key of a trial: the plan that all share, the task as it draws, the plugin's code, and its own place."""
    return identity_key(plan=plan.digest(), task=task_digest(task), source=source, **place)


def task_digest(task: Task) -> str:
    """Of what the task draws and how it is trained, so that an edited task is measured anew."""
    digest = hashlib.sha256(repr((task.name, task.updates, task.batch_size, task.learning_rates)).encode())
    for condition in task.tests:
        examples = task.test(condition, 16)
        digest.update(examples.inputs.tobytes() + examples.targets.tobytes())
    batch = TaskSampler(task, 0, ()).batch(0)
    digest.update(batch.inputs.numpy().tobytes() + batch.targets.numpy().tobytes())
    return digest.hexdigest()[:16]


def known_trial(folder: Path, key: str) -> TrialRecord | None:
    """The record of a trial that is finished; None where it is still to be measured.

    Raises:
        StorageError: the record cannot be read.
    """
    return read_record(TrialRecord, folder, key)


def measure_trial(trial: Trial, folder: Path) -> TrialRecord:
    """Train and score; the record is kept in ``folder``. An error of the architecture or task is the trial's outcome.

    Raises:
        StorageError: the folder cannot be written.
    """
    malloc = tune_malloc()
    torch.set_num_threads(trial.plan.threads)
    record = TrialRecord(trial.key, new_run_id(), "ok", malloc=malloc)
    start, cpu = time.monotonic(), time.process_time()
    try:
        record = (_pilot if trial.stage == "pilot" else _trial)(trial, record)
    except ArchbenchError as error:
        record = replace(record, outcome="failed", cause=f"{error.culprit}: {error.cause}")
    except Exception as error:  # noqa: BLE001  (a stranger's model, called without a hook around it)
        record = replace(
            record, outcome="failed", cause=f"architecture {trial.architecture}: it raised {one_line(error)}"
        )
    seconds, spent = time.monotonic() - start, time.process_time() - cpu
    record = replace(record, seconds=seconds, cpu_seconds=record.cpu_seconds or spent)
    write_record(folder, record)
    return record


def model_config(architecture: Architecture, plan: ProbePlan, task: Task, overrides: Mapping[str, Any]) -> ModelConfig:
    """The model that reads the task: its vocabulary and its longest example are the task's."""
    values = {**overrides, "vocab_size": task.vocab_size, "context_length": task.context_length}
    return architecture.config(plan.preset, **values)


def budget_of(plan: ProbePlan, task: Task) -> int:
    """Optimizer updates, at most."""
    return plan.updates if plan.updates is not None else task.updates


def rates_of(plan: ProbePlan, task: Task) -> tuple[float, ...]:
    return plan.learning_rates if plan.learning_rates is not None else task.learning_rates


def _trial(trial: Trial, record: TrialRecord) -> TrialRecord:
    plan, device = trial.plan, resolve_device(trial.plan.device)
    architecture, task = _parts(trial.architecture, trial.task, plan.plugins)
    updates = budget_of(plan, task)
    tests = {name: task.test(name, plan.examples) for name in task.tests}
    held_out = {name: task.validation(name, VALIDATED, test) for name, test in tests.items()}
    state, recipe = _state(trial, architecture, task, device, updates)
    found: dict[str, float] = {}

    def validate(model: nn.Module) -> float:
        with state.autocast():
            found.update({name: accuracy(model, examples, device) for name, examples in held_out.items()})
        return 1 - statistics.mean(found.values())

    history = train(
        state,
        TaskSampler(task, trial.seed, [*held_out.values(), *tests.values()]),
        recipe,
        clock=clock_for(device),
        step=architecture.train_step,
        validate=validate,
        enough=lambda: min(found.values()) >= FINISHED,
    )
    if history.diverged_at is not None:
        cause = f"its loss was no longer finite at update {history.diverged_at}"
        return replace(record, outcome="diverged", cause=cause, updates=state.step)
    model = state.module.eval()
    with state.autocast():
        scores = {name: accuracy(model, examples, device) for name, examples in tests.items()}
    return replace(record, updates=state.step, validation=found, test=scores)


def _pilot(trial: Trial, record: TrialRecord) -> TrialRecord:
    """What a whole trial takes, from a few updates and a few examples scored.

    The conformance checks are run here too: once an architecture, on its first task.
    """
    plan, device = trial.plan, resolve_device(trial.plan.device)
    architecture, task = _parts(trial.architecture, trial.task, plan.plugins)
    if plan.checked and trial.task == plan.tasks[0]:
        _require_conformance(trial, architecture, task, device)
    state, recipe = _state(trial, architecture, task, device, PILOT_UPDATES)
    history = train(
        state, TaskSampler(task, trial.seed, ()), recipe, clock=clock_for(device), step=architecture.train_step
    )
    steps = [step.seconds for step in history.steps[2:] or history.steps]  # fewer where it diverged at once
    scored = (plan.examples + VALIDATIONS * VALIDATED) / PILOT_EXAMPLES
    model = state.module.eval()
    start = time.monotonic()
    for name in task.tests:
        accuracy(model, task.test(name, PILOT_EXAMPLES), device)
    scoring = (time.monotonic() - start) * scored
    return replace(record, cpu_seconds=statistics.median(steps) * budget_of(plan, task) + scoring, updates=state.step)


def _require_conformance(trial: Trial, architecture: Architecture, task: Task, device: torch.device) -> None:
    """Raises ConformanceError where a check of the gate fails."""
    from archbench.testing.catalogue import GATE
    from archbench.testing.checks import evaluate
    from archbench.testing.subject import Subject

    config = model_config(architecture, trial.plan, task, trial.overrides)
    for result in evaluate(Subject(architecture, config, device), GATE):
        if result.status == "failed":
            raise ConformanceError(
                f"architecture {trial.architecture}",
                f"it fails the conformance check {result.name}: {result.evidence.rstrip('. ')}",
                f"Correct it (archbench check {trial.architecture} shows all), or probe it with --unchecked",
            )


@cache
def _parts(architecture: str, task: str, plugins: tuple[str, ...]) -> tuple[Architecture, Task]:
    """Loaded once a process: a process measures many trials."""
    (found,) = load_tasks([task], plugins)
    return load(architecture, plugins), found


def _state(
    trial: Trial, architecture: Architecture, task: Task, device: torch.device, updates: int
) -> tuple[TrainState, TrainingConfig]:
    values: dict[str, Any] = {**RECIPE, "steps": updates, "batch_size": task.batch_size}
    if trial.stage == "trial":
        values["validate_every"] = max(1, updates // VALIDATIONS)
    recipe = TrainingConfig(learning_rate=trial.learning_rate, **values)
    config = model_config(architecture, trial.plan, task, trial.overrides)
    model = build_model(architecture, config, trial.seed, device)
    return TrainState.create(model, recipe, device=device, dtype=trial.plan.dtype), recipe
