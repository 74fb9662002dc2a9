"""A probe from plan to outcome: match, predict, train, score. Killed at any time, it goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from archbench.compare.files import require_same_plan
from archbench.compare.pool import Follower, run_cells
from archbench.compare.prediction import PROCESS_SECONDS, together
from archbench.data.tasks import Task
from archbench.errors import UsageError
from archbench.plugin.registry import load_tasks
from archbench.probing.contenders import Contender, contenders
from archbench.probing.outcome import Measured, write_outcome
from archbench.probing.plan import PLAN, ProbePlan
from archbench.probing.trials import Kind, Trial, TrialRecord, known_trial, measure_trial, rates_of, trial_key
from archbench.results.lock import locked


def probe(plan: ProbePlan, folder: Path, follower: Follower[Trial, TrialRecord], command: str) -> dict[str, Any]:
    """Run what is not known yet of the plan and judge; the outcome, as ``probe.json`` has it.

    Args:
        plan: what to probe.
        folder: of the probe; one of the same digest is gone on with.
        command: what the user typed, to be kept.

    Raises:
        UnknownNameError: there is no such architecture, preset or task.
        UsageError: the folder holds another plan, another process works on it, or no architecture takes part.
        StorageError: nothing can be stored.
    """
    tasks = load_tasks(plan.tasks, plan.plugins)
    with locked(folder):
        require_same_plan(folder / PLAN, plan.digest(), plan.model_dump(mode="json"), "a probe")
        started = time.monotonic()
        found = contenders(plan, tasks)
        pilots = _pilots(plan, folder, tasks, found, follower)
        found = [_after_pilot(one, pilots) for one in found]
        for one in found:
            if one.reason is not None:
                follower.note(f"{one.architecture} takes no part: {one.reason}")
        if all(one.reason is not None for one in found):
            step = "Correct what the notes above say, or name other architectures"
            raise UsageError("archbench probe", "nothing is left to probe", step)
        trials = _trials(plan, tasks, found)
        waiting = {trial.key for trial in trials if known_trial(folder, trial.key) is None}
        left = _predicted(plan, pilots, [trial for trial in trials if trial.key in waiting])
        all_of_it = time.monotonic() - started + _predicted(plan, pilots, trials)
        follower.began(all_of_it, left, len(trials), len(trials) - len(waiting))
        records = run_cells(trials, folder, plan.jobs, follower.finished, known=known_trial, measure=measure_trial)
        before = sum(records[trial.key].seconds for trial in trials if trial.key not in waiting) / plan.jobs
        return write_outcome(
            Measured(
                plan=plan,
                folder=folder,
                command=command,
                tasks=tasks,
                contenders=found,
                trials=[(trial, records[trial.key]) for trial in trials],
                predicted_seconds=all_of_it,
                measured_seconds=before + time.monotonic() - started,
            )
        )


def _pilots(
    plan: ProbePlan,
    folder: Path,
    tasks: Sequence[Task],
    found: Sequence[Contender],
    follower: Follower[Trial, TrialRecord],
) -> dict[tuple[str, str], TrialRecord]:
    """A pilot of each architecture on each task, by both names."""
    pilots = [
        _trial("pilot", plan, one, task, rates_of(plan, task)[0], 0)
        for one in found
        if one.reason is None
        for task in tasks
    ]
    follower.piloting(len(pilots))
    records = run_cells(pilots, folder, plan.jobs, lambda trial, record: None, known=known_trial, measure=measure_trial)
    return {(pilot.architecture, pilot.task): records[pilot.key] for pilot in pilots}


def _after_pilot(one: Contender, pilots: dict[tuple[str, str], TrialRecord]) -> Contender:
    """Without those whose pilot failed: they would fail all their trials."""
    causes = [record.cause for (name, _), record in pilots.items() if name == one.architecture and record.cause]
    return replace(one, reason=causes[0]) if causes else one


def _trials(plan: ProbePlan, tasks: Sequence[Task], found: Sequence[Contender]) -> list[Trial]:
    """Seed by seed and task by task, so that a probe that is stopped has something of all."""
    return [
        _trial("trial", plan, one, task, rate, seed)
        for seed in range(plan.seeds)
        for task in tasks
        for one in found
        if one.reason is None
        for rate in rates_of(plan, task)
    ]


def _trial(stage: Kind, plan: ProbePlan, one: Contender, task: Task, rate: float, seed: int) -> Trial:
    place = {
        "stage": stage, "architecture": one.architecture, "overrides": dict(one.overrides), "learning_rate": rate,
        "seed": seed, "checks": stage == "pilot" and task.name == plan.tasks[0],
    }  # fmt: skip
    return Trial(
        stage, plan, one.architecture, dict(one.overrides), task.name, rate, seed,
        trial_key(plan, task, one.source, **place),
    )  # fmt: skip


def _predicted(plan: ProbePlan, pilots: dict[tuple[str, str], TrialRecord], trials: Sequence[Trial]) -> float:
    seconds = [pilots[trial.architecture, trial.task].cpu_seconds for trial in trials]
    return PROCESS_SECONDS + together(seconds, plan.jobs) if seconds else 0.0
