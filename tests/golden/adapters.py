"""Where the golden files meet archbench's own modules: a module that moves or a function that is renamed changes a
line here, and nothing else of the golden test."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from archbench.cli import main
from archbench.config import RunConfig
from archbench.plugin.registry import load_tasks
from archbench.results.schema import arrow_schema
from archbench.study.compare import budget_of, cost_cells, seed_cells, speed_cells
from archbench.study.compare_plan import ComparePlan
from archbench.study.comparison_outcome import ComparisonOutcome
from archbench.study.contenders import contenders as compare_contenders
from archbench.study.probe_outcome import ProbeOutcome
from archbench.study.probe_plan import ProbePlan
from archbench.study.run_cells import pilot_cell, tuning_cells
from archbench.study.scale import contenders as scale_contenders
from archbench.study.scale import point_cells
from archbench.study.scale_outcome import ScaleOutcome
from archbench.study.scale_plan import ScalePlan
from archbench.study.trials import trial_key
from wrong_plugins import WRONG_PLUGINS

MEASURING = {
    "run": ("archbench.runs.run", "run"),
    "compare": ("archbench.study.engine", "conduct"),
    "tune": ("archbench.study.engine", "conduct"),
    "probe": ("archbench.study.engine", "conduct"),
    "scale": ("archbench.study.engine", "conduct"),
    "kernels": ("archbench.runs.kernel_run", "measure_kernels"),
}
"""Command -> the function that it hands its frozen plan to, or a study of it."""

READERS = {
    "compare-nano/comparison.json": ComparisonOutcome.read,
    "scale-nano/scale.json": ScaleOutcome.read,
    "probe-mini/probe.json": ProbeOutcome.read,
}
"""An outcome's file in results/reference -> what reads its folder into a model."""

SCHEMA = arrow_schema()


class _HandedOver(BaseException):
    pass


def output(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``archbench ARGUMENTS``, in this process."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), warnings.catch_warnings():
        code = main(arguments)
    return code, out.getvalue(), error.getvalue()


def handed_over(*arguments: str) -> tuple[Any, Path | None]:
    """The plan that a command line is understood as, and the folder that its study goes to; nothing is measured."""
    found: list[Any] = []

    def take(plan: Any, folder: Path | None = None, *others: Any, **more: Any) -> None:
        found.extend([getattr(plan, "plan", plan), folder])
        raise _HandedOver

    module, name = MEASURING[arguments[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module(module), name, take)
        with contextlib.suppress(_HandedOver):
            code, _, error = output(*arguments)
            raise AssertionError(f"{' '.join(arguments)} measured nothing: exit code {code}: {error}")
    return found[0], found[1]


def compare_cells(plan: ComparePlan) -> dict[str, Any]:
    """Sizes, and the keys of every cell that is known before anything runs."""
    found = compare_contenders(plan)
    budget = budget_of(plan, found[0], 0.125)
    rate = plan.run.training.learning_rate
    cells = {
        "pilot": [pilot_cell(plan, one) for one in found],
        "tune": [cell for one in found for cell in tuning_cells(plan, one, budget, plan.factors)],
        "seed": [cell for one in found for cell in seed_cells(plan, one, budget, rate)],
        "speed": speed_cells(plan, found),
        "cost": [cell for one in found for cell in cost_cells(plan, one)],
    }
    return {
        "budget": budget,
        "overrides": {one.architecture: dict(one.overrides) for one in found},
        "keys": {stage: [cell.key for cell in own] for stage, own in cells.items()},
        "config_hashes": {stage: [cell.config.config_hash() for cell in own] for stage, own in cells.items()},
    }


def scale_cells(plan: ScalePlan) -> dict[str, Any]:
    """Sizes, and the keys of pilots, of trials of learning rates, and of points at the recipe's rate."""
    found = scale_contenders(plan)
    rate, budget = plan.run.training.learning_rate, {"tokens": plan.tuning_budget}
    cells = {
        "pilot": [pilot_cell(plan, one) for one in found],
        "tune": [cell for one in found for cell in tuning_cells(plan, one, budget, plan.factors)],
        "point": [cell for one in found for cell in point_cells(plan, one, rate)],
    }
    return {
        "overrides": {f"{one.architecture} {one.asked}": dict(one.overrides) for one in found},
        "keys": {stage: [cell.key for cell in own] for stage, own in cells.items()},
    }


def probe_trials(plan: ProbePlan) -> dict[str, Any]:
    """The keys of pilots and trials, by task; of an architecture whose code has the digest "source"."""
    keys: dict[str, list[str]] = {}
    for task in load_tasks(plan.tasks, plan.plugins):
        for stage in ("pilot", "trial"):
            place = {
                "stage": stage, "architecture": "golden-left", "overrides": {"d_ff": 48}, "learning_rate": 1e-3,
                "seed": 0, "checks": stage == "pilot" and task.name == plan.tasks[0],
            }  # fmt: skip
            keys.setdefault(task.name, []).append(trial_key(plan, task, "source", **place))
    return {"digest": plan.digest(), "keys": keys}


def run_config(**values: Any) -> RunConfig:
    return RunConfig(**values)


def probe_plan(**values: Any) -> ProbePlan:
    return ProbePlan(**values)


def plan_of(command: Sequence[str]) -> Any:
    return handed_over(*command)[0]


def faults() -> dict[str, int]:
    """Check -> how many wrong plugins it is shown to find, and no other check: by ``-m exhaustive``, all of them."""
    return dict(Counter(wrong.check for wrong in WRONG_PLUGINS))


class Silent:
    """Listens to a study, and says nothing."""

    def piloting(self, *_: Any) -> None: ...
    def started(self, *_: Any) -> None: ...
    def known(self, *_: Any) -> None: ...
    def began(self, *_: Any) -> None: ...
    def finished(self, *_: Any) -> None: ...
    def note(self, *_: Any) -> None: ...


def probed(plan: ProbePlan, folder: Path) -> dict[str, Any]:
    """The outcome of a probe whose plan is given: the command line would make its plugins' paths absolute."""
    from archbench.study.engine import conduct
    from archbench.study.probe import Probe

    return conduct(Probe(plan), folder, Silent(), "archbench probe").as_json()
