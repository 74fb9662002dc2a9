"""``archbench probe``: which diagnostic tasks architectures of equal size learn on a small budget."""

from __future__ import annotations

import hashlib
import json
import socket
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from archbench.data.tasks import Task
from archbench.errors import ArchbenchError
from archbench.measure.machine import driver_version, versions
from archbench.measure.sizes import Size
from archbench.plugin.registry import load, load_tasks
from archbench.results.schema import ROLES, UNCHECKED
from archbench.results.store import run_table
from archbench.study import probe_outcome as outcomes
from archbench.study.contenders import built_size, sized
from archbench.study.contract import Contender, Quality, Study
from archbench.study.engine import Session, machine
from archbench.study.probe_outcome import ProbeOutcome, Score, TrialRecord, Verdict
from archbench.study.probe_plan import ProbePlan
from archbench.study.trials import Kind, Trial, budget_of, model_config, rates_of, trial_key
from archbench.testing.evaluation import LEVEL

SOLVED = 0.99
"""A task is solved if every seed has this accuracy."""

LEARNED = 0.1
"""A task is partly learned from this share of the way from chance to 1 on."""

Found = Sequence[tuple[Trial, TrialRecord]]


class Probe(Study[ProbePlan, Trial, TrialRecord, ProbeOutcome]):
    """A probe: every contender on every task, at each learning rate, with each seed."""

    kind, record = ProbeOutcome, TrialRecord
    verb: ClassVar[str] = "probe"

    def __init__(self, plan: ProbePlan) -> None:
        super().__init__(plan)
        self.tasks = load_tasks(plan.tasks, plan.plugins)
        self.sizes: dict[str, dict[str, outcomes.ModelSize]] = {}
        self.predicted: dict[tuple[str, str], float] = {}

    def contenders(self) -> list[Contender]:
        return [self._contender(name) for name in self.plan.architectures]

    def pilots(self, contender: Contender) -> Sequence[Trial]:
        return [self._trial("pilot", contender, task, rates_of(self.plan, task)[0], 0) for task in self.tasks]

    def admit(self, contender: Contender, pilots: Sequence[TrialRecord], folder: Path) -> str | None:
        for task, record in zip(self.tasks, pilots, strict=True):
            self.predicted[contender.architecture, task.name] = record.cpu_seconds
        return next((record.cause for record in pilots if record.cause), None)

    def measure(self, session: Session[ProbePlan, Trial, TrialRecord, ProbeOutcome]) -> None:
        """Train seed by seed and task by task, so that an interrupted probe has trials of all."""
        session.run(
            [
                self._trial("trial", one, task, rate, seed)
                for seed in range(self.plan.seeds)
                for task in self.tasks
                for one in session.taking_part()
                for rate in rates_of(self.plan, task)
            ]
        )

    def seconds(self, cell: Trial) -> float:
        return self.predicted[cell.architecture, cell.task]

    def sort(self, cell: Trial) -> str:
        """Its task: a training ends early when it has learned it."""
        return cell.task

    def quality(self, cell: Trial, record: TrialRecord, folder: Path) -> Quality | None:
        if not record.test:
            return None
        return Quality(statistics.mean(record.test.values()), "accuracy", cell.task)

    def outcome(
        self, session: Session[ProbePlan, Trial, TrialRecord, ProbeOutcome], common: Mapping[str, Any]
    ) -> tuple[ProbeOutcome, list[pa.Table]]:
        """Score each contender on each task at its best learning rate, chosen on validation examples."""
        plan, now = self.plan, versions()
        trials = [(trial, record) for trial, record in session.measured.values() if trial.stage == "trial"]
        elsewhere = next((record.device_name for _, record in trials if record.device_name is not None), None)
        here = machine(plan.device, elsewhere)
        scores: list[Score] = []
        tables: list[pa.Table] = []
        for one in session.taking_part():
            revision = load(one.architecture, plan.plugins).revision()
            for task in self.tasks:
                found = chosen([pair for pair in trials if pair[0].of(one.architecture, task.name)])
                scores += [self._score(one, task, condition, found) for condition in task.tests]
                for trial, record in found:
                    if record.test:
                        columns = {
                            **now,
                            **here,
                            **self._where(record),
                            "plugin_revision": revision,
                            **self._columns(one, task, trial),
                        }
                        tables.append(run_table(str(record.run_id), self._rows(one, task, trial, record), columns))
        outcome = ProbeOutcome(
            **common,
            machine=here,
            plan=ProbePlan(**dict(plan)),
            tasks=[
                outcomes.Task.of(task, conditions=list(task.tests), updates=budget_of(plan, task))
                for task in self.tasks
            ],
            models=[outcomes.Model.of(one, sizes=self.sizes.get(one.architecture, {})) for one in session.contenders],
            scores=scores,
            trials=[outcomes.Trial.of(trial, **record.model_dump()) for trial, record in trials],
        )
        return outcome, tables

    def _where(self, record: TrialRecord) -> dict[str, str | None]:
        """The host that measured it, with its device and driver as far as the record has them."""
        if record.host is not None:
            device = {} if record.device_name is None else {"device_name": record.device_name}
            return {"host": record.host, "driver": record.driver, **device}
        return {"host": socket.gethostname(), "driver": driver_version(self.plan.device)}

    def _contender(self, name: str) -> Contender:
        """The architecture at the plan's size for the first task; its sizes for all tasks are kept."""
        plan, first = self.plan, self.tasks[0]
        reads = {"vocab_size": first.vocab_size, "context_length": first.context_length}
        one = sized(name, plan.preset, plan.plugins, {**plan.overrides, **reads}, plan.parameters)
        own = {field: value for field, value in one.overrides.items() if field not in reads}
        one = replace(one, overrides=own, context_length=None, size=None)
        if one.matched:
            try:
                self.sizes[name] = {task.name: outcomes.ModelSize.of(self._size(task, one)) for task in self.tasks}
            except ArchbenchError as error:
                return replace(one, reason=f"{error.culprit}: {error.cause}")
        return one

    def _size(self, task: Task, one: Contender) -> Size:
        architecture = load(one.architecture, self.plan.plugins)
        return built_size(architecture, model_config(architecture, self.plan, task, one.overrides))

    def _trial(self, stage: Kind, one: Contender, task: Task, rate: float, seed: int) -> Trial:
        overrides = dict(one.overrides)
        checks = stage == "pilot" and task.name == self.plan.tasks[0]
        place = {"stage": stage, "architecture": one.architecture, "overrides": overrides, "learning_rate": rate}
        key = trial_key(self.plan, task, one.source, seed=seed, checks=checks, **place)
        return Trial(stage, self.plan, one.architecture, overrides, task.name, rate, seed, key)

    def _score(self, one: Contender, task: Task, condition: str, found: Found) -> Score:
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
            state_bytes=self.sizes[one.architecture][task.name].state_bytes,
        )

    def _rows(self, one: Contender, task: Task, trial: Trial, record: TrialRecord) -> list[dict[str, Any]]:
        """The tidy rows of a trial that counts."""
        rows: list[dict[str, Any]] = []
        for condition, value in record.test.items():
            rows.append({"metric": "accuracy", "operation": condition, "value": value})
            rows.append({"metric": "chance", "operation": condition, "value": task.chance[condition]})
        rows += [
            {"metric": "state_bytes", "value": self.sizes[one.architecture][task.name].state_bytes},
            {"metric": "learning_rate", "value": trial.learning_rate},
            {"metric": "updates", "value": record.updates},
            {"metric": "cpu_seconds", "value": record.cpu_seconds},
        ]
        return [{**row, "malloc": record.malloc} for row in rows]

    def _columns(self, one: Contender, task: Task, trial: Trial) -> dict[str, Any]:
        """The columns that all rows of a trial share."""
        plan, architecture = self.plan, load(one.architecture, self.plan.plugins)
        shape = json.dumps([plan.digest(), one.architecture, dict(one.overrides)], sort_keys=True, default=str)
        return {
            "phase": "probe",
            "architecture": one.architecture,
            "plugin_package": architecture.package,
            "plugin_version": architecture.version,
            "role": ROLES["point"],
            "preset": plan.preset,
            "config_hash": hashlib.sha256(shape.encode()).hexdigest()[:12],
            "seed": trial.seed,
            "dtype": plan.dtype,
            "compile": False,
            "threads": plan.threads,
            "batch_size": task.batch_size,
            "context_length": task.context_length,
            "parameters": self.sizes[one.architecture][task.name].parameters,
            "corpus": task.name,
            "conformance": str(LEVEL) if plan.checked else UNCHECKED,
        }


def verdict_of(values: Sequence[float], chance: float) -> Verdict:
    """The verdict on the seeds' accuracies. It never says that a task cannot be learned."""
    if not values:
        return "not measured"
    if min(values) >= SOLVED:
        return "solved"
    share = (statistics.mean(values) - chance) / (1 - chance)
    return "partly learned" if share >= LEARNED else "not learned under this budget"


def chosen(trials: Found) -> Found:
    """The trials at the learning rate with the best validation accuracy, averaged over conditions and seeds.

    A diverged seed answered none. A failed seed does not count, nor does a rate at which all seeds failed.

    Args:
        trials: of one architecture on one task.
    """
    by_rate: dict[float, list[tuple[Trial, TrialRecord]]] = {}
    for trial, record in trials:
        if record.outcome != "failed":
            by_rate.setdefault(trial.learning_rate, []).append((trial, record))

    def answered(pairs: Found) -> float:
        return statistics.mean(
            statistics.mean(record.validation.values()) if record.outcome == "ok" else 0.0 for _, record in pairs
        )

    return max(by_rate.values(), key=answered, default=[])
