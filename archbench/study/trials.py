"""The cells of a probe: trainings on one task, with one learning rate and seed."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from archbench.config import ModelConfig, TrainingConfig
from archbench.data.tasks import Task, TaskSampler
from archbench.errors import ArchbenchError, ConformanceError, ResourceError, StorageError, one_line, refusal
from archbench.measure.accuracy import accuracy
from archbench.measure.clock import clock_for
from archbench.measure.malloc import tune_malloc
from archbench.plugin.architecture import Architecture
from archbench.plugin.registry import load, load_tasks
from archbench.results.store import new_run_id
from archbench.runs.device import resolve_device
from archbench.runs.models import build_model
from archbench.study.probe_outcome import TrialRecord
from archbench.study.probe_plan import ProbePlan
from archbench.study.records import identity_key
from archbench.trackers.feed import Feed
from archbench.trackers.following import followed_by
from archbench.training.ledger import Observer
from archbench.training.loop import train
from archbench.training.state import TrainState

VALIDATED = 100
"""Validation examples for each condition: they choose a learning rate and end a training early."""

VALIDATIONS = 10
"""Validations during a training."""

RECIPE = {"warmup_fraction": 0.1, "weight_decay": 0.0, "schedule": "wsd", "betas": (0.9, 0.98)}
"""Recipe of every training; other fields are the defaults of :class:`archbench.config.TrainingConfig`."""

FINISHED = 0.995
"""A training ends early when every condition reaches this accuracy on validation examples."""

PILOT_UPDATES = 6
PILOT_EXAMPLES = 64

Kind = Literal["pilot", "trial"]


@dataclass(frozen=True)
class Trial:
    """A training of a probe, or its pilot.

    Attributes:
        stage: pilot (the conformance checks, and a few updates to predict the time) or trial (the whole training).
        overrides: replaced fields of the architecture's preset.
        key: 16 hex digits; trials that measure the same with the same code have the same key.
    """

    stage: Kind
    plan: ProbePlan
    architecture: str
    overrides: Mapping[str, Any]
    task: str
    learning_rate: float
    seed: int
    key: str

    @property
    def plugins(self) -> tuple[str, ...]:
        return self.plan.plugins

    @property
    def device(self) -> str:
        return self.plan.device

    @property
    def outside(self) -> tuple[str, ...]:
        """Files and folders that it reads."""
        return self.plan.plugins

    def of(self, architecture: str, task: str) -> bool:
        """Whether this architecture trains on this task."""
        return (self.architecture, self.task) == (architecture, task)

    def measure(self, folder: Path, trackers: Sequence[str]) -> TrialRecord:
        """Train and score. The record has an error of the architecture or the task.

        Raises:
            ResourceError, StorageError: memory or a disk is full.
        """
        malloc = tune_malloc()
        torch.set_num_threads(self.plan.threads)
        record = TrialRecord(key=self.key, run_id=new_run_id(), outcome="ok", malloc=malloc)
        cpu = time.process_time()
        try:
            if self.stage == "pilot":
                record = _pilot(self, record)
            elif trackers:
                record = _tracked(self, record, folder, trackers)
            else:
                record = _trial(self, record, None)
        except (ResourceError, StorageError):
            raise
        except ArchbenchError as error:
            record = _with(record, outcome="failed", cause=f"{error.culprit}: {error.cause}")
        except Exception as error:  # a plugin's model is called directly, not through a hook
            if (refused := refusal(error, f"architecture {self.architecture}")) is not None:
                raise refused from error
            cause = f"architecture {self.architecture}: it raised {one_line(error)}"
            record = _with(record, outcome="failed", cause=cause)
        return _with(record, cpu_seconds=record.cpu_seconds or time.process_time() - cpu)


def trial_key(plan: ProbePlan, task: Task, source: str, **place: Any) -> str:
    """Key of a trial: of the plan's digest, the task's examples, the plugin's code and the place in the plan."""
    return identity_key(plan=plan.digest(), task=task_digest(task), source=source, **place)


def task_digest(task: Task) -> str:
    """Digest of the task's examples and training: an edited task is measured again."""
    digest = hashlib.sha256(repr((task.name, task.updates, task.batch_size, task.learning_rates)).encode())
    for condition in task.tests:
        examples = task.test(condition, 16)
        digest.update(examples.inputs.tobytes() + examples.targets.tobytes())
    batch = TaskSampler(task, 0, ()).batch(0)
    digest.update(batch.inputs.numpy().tobytes() + batch.targets.numpy().tobytes())
    return digest.hexdigest()[:16]


def model_config(architecture: Architecture, plan: ProbePlan, task: Task, overrides: Mapping[str, Any]) -> ModelConfig:
    """Configuration of a model with the task's vocabulary and the context of its longest example."""
    values = {**overrides, "vocab_size": task.vocab_size, "context_length": task.context_length}
    return architecture.config(plan.preset, **values)


def budget_of(plan: ProbePlan, task: Task) -> int:
    """Most optimizer updates of a training."""
    return plan.updates if plan.updates is not None else task.updates


def rates_of(plan: ProbePlan, task: Task) -> tuple[float, ...]:
    return plan.learning_rates if plan.learning_rates is not None else task.learning_rates


def _with(record: TrialRecord, **values: Any) -> TrialRecord:
    return record.model_copy(update=values)


def _tracked(trial: Trial, record: TrialRecord, folder: Path, trackers: Sequence[str]) -> TrialRecord:
    """A trial that trackers follow: they get its steps, then its accuracies."""
    own = folder / "runs" / trial.key / str(record.run_id)
    own.mkdir(parents=True)
    run = {"architecture": trial.architecture, "preset": trial.plan.preset, "seed": trial.seed, "task": trial.task}
    run |= {"learning_rate": trial.learning_rate, "overrides": dict(trial.overrides)}
    with followed_by(trackers, quiet=True) as following, Feed(own) as feed:
        following.start(str(record.run_id), {"run": run, "probe": trial.plan.model_dump(mode="json")}, own)

        def observe(step: int, seen: int, values: Mapping[str, float]) -> None:
            named = {"validation_error" if name == "validation_loss" else name: one for name, one in values.items()}
            feed.log(step, seen, named)

        try:
            record = _trial(trial, record, observe)
        except BaseException as error:
            following.finish([], "failed" if isinstance(error, Exception) else "interrupted")
            raise
        scores = [
            {"phase": "probe", "metric": f"accuracy/{condition}", "value": value}
            for condition, value in record.test.items()
        ]
        following.finish(scores, "finished")
    return record


def _trial(trial: Trial, record: TrialRecord, observe: Observer | None) -> TrialRecord:
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
        observe=observe,
    )
    if history.diverged_at is not None:
        cause = f"its loss was no longer finite at update {history.diverged_at}"
        return _with(record, outcome="diverged", cause=cause, updates=state.step)
    model = state.module.eval()
    with state.autocast():
        scores = {name: accuracy(model, examples, device) for name, examples in tests.items()}
    return _with(record, updates=state.step, validation=found, test=scores)


def _pilot(trial: Trial, record: TrialRecord) -> TrialRecord:
    """Predict the time of a whole trial from a few updates and a few scored examples.

    The pilot on the first task also runs the conformance checks.
    """
    plan, device = trial.plan, resolve_device(trial.plan.device)
    architecture, task = _parts(trial.architecture, trial.task, plan.plugins)
    if plan.checked and trial.task == plan.tasks[0]:
        _require_conformance(trial, architecture, task, device)
    state, recipe = _state(trial, architecture, task, device, PILOT_UPDATES)
    history = train(
        state, TaskSampler(task, trial.seed, ()), recipe, clock=clock_for(device), step=architecture.train_step
    )
    steps = [step.seconds for step in history.steps[2:] or history.steps]  # fewer if it diverged at once
    scored = (plan.examples + VALIDATIONS * VALIDATED) / PILOT_EXAMPLES
    model = state.module.eval()
    start = time.monotonic()
    for name in task.tests:
        accuracy(model, task.test(name, PILOT_EXAMPLES), device)
    scoring = (time.monotonic() - start) * scored
    return _with(record, cpu_seconds=statistics.median(steps) * budget_of(plan, task) + scoring, updates=state.step)


def _require_conformance(trial: Trial, architecture: Architecture, task: Task, device: torch.device) -> None:
    """Raise a ConformanceError if a check of the gate fails."""
    from archbench.testing.checks import GATE
    from archbench.testing.evaluation import evaluate
    from archbench.testing.probes import Text
    from archbench.testing.subject import Subject

    config = model_config(architecture, trial.plan, task, trial.overrides)
    text = Text(TaskSampler(task, trial.seed, ()).batch(0).inputs.flatten())
    for result in evaluate(Subject(architecture, config, device, text=text), GATE):
        if result.status == "failed":
            raise ConformanceError(
                f"architecture {trial.architecture}",
                f"it fails the conformance check {result.name}: {result.evidence.rstrip('. ')}",
                f"Correct it (archbench check {trial.architecture} shows all checks), or probe it with --unchecked",
            )


@cache
def _parts(architecture: str, task: str, plugins: tuple[str, ...]) -> tuple[Architecture, Task]:
    """Loaded once in each process, because a process measures many trials."""
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
