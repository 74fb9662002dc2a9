"""``archbench compare`` and ``archbench tune``: match, tune, confirm with fresh seeds, time in turns, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from archbench.errors import UsageError
from archbench.study.compare_plan import MATCHES, ComparePlan
from archbench.study.compare_results import MOST_SWEEPS, Results, cell_of, conclusion, model_of
from archbench.study.comparison_outcome import ComparisonOutcome, Plan, TuningOutcome
from archbench.study.contenders import contenders
from archbench.study.contract import Contender
from archbench.study.costs import cost_curves, cost_rows, exact_rows, positions, withheld
from archbench.study.engine import Session
from archbench.study.learning_rates import Tuning
from archbench.study.outcome import Record
from archbench.study.run_cells import Budget, RunCell, budget_fields, run_cell, tokens_per_update, updates_of
from archbench.study.run_study import COST_NEW_TOKENS, SPEED_STEPS, TuningStudy, shared_settings, tables_of
from archbench.study.verdicts import CONFIDENCE

VALIDATIONS = 8
"""Validations of a training run, for its curve."""

O = TypeVar("O", bound=TuningOutcome)  # noqa: E741
Work = Session[ComparePlan, RunCell, Record, O]


class _Matched(TuningStudy[ComparePlan, O]):
    """What a comparison and the search for learning rates share."""

    verb: ClassVar[str] = "compare the baseline with"

    def __init__(self, plan: ComparePlan) -> None:
        super().__init__(plan)
        self.budget: dict[str, float] = {}
        self.tunings: dict[str, Tuning] = {}

    def contenders(self) -> list[Contender]:
        return contenders(self.plan)

    def admit(self, contender: Contender, pilots: Sequence[Record], folder: Path) -> str | None:
        reason = super().admit(contender, pilots, folder)
        if reason is not None and contender.architecture == self.plan.baseline:
            step = f"Find out with: archbench run {contender.architecture} --profile {self.plan.run.profile}"
            raise UsageError(f"baseline {contender.architecture}", reason, step)
        return reason

    def prepare(self, session: Work[O]) -> None:
        super().prepare(session)
        baseline, pilot = self.admitted[self.plan.baseline, None]
        self.budget = session.kept.get("budget") or budget_of(self.plan, baseline, pilot.update)
        session.kept |= {"budget": self.budget, "turns": turn_groups(session.kept, self.plan.architectures)}

    def tune(self, session: Work[O]) -> None:
        self.tunings = {name: found for (name, _), found in self.search(session, self.budget).items()}

    def continues(self, kept: Mapping[str, Any]) -> bool:
        """Adding architectures continues a folder. Removing some does not: Holm's correction would become smaller."""
        before = kept.get("plan", {}).get("architectures", [])
        if not set(before) <= set(self.plan.architectures):
            return super().continues(kept)
        return kept.get("digest") in (self.plan.digest(), self.plan.digest(before))

    def common(self, session: Work[O], common: Mapping[str, Any], results: Results) -> dict[str, Any]:
        """The fields of ``tuning.json``, with which ``comparison.json`` begins."""
        baseline, _ = self.admitted[self.plan.baseline, None]
        plan, (unit, amount) = self.plan, next(iter(self.budget.items()))
        return {
            **common,
            "machine": results.machine(),
            "plan": Plan.of(
                plan,
                **shared_settings(plan.run, baseline),
                confidence=CONFIDENCE,
                budget={"unit": unit, "amount": amount},
                matched_on=MATCHES[plan.match],
            ),
            "models": [model_of(one) for one in session.contenders],
            "cells": [cell_of(cell, record) for cell, record in results.cells],
            "tuning": list(self.tunings.values()),
        }


class RateSearch(_Matched[TuningOutcome]):
    """``archbench tune``."""

    kind = TuningOutcome

    def measure(self, session: Work[TuningOutcome]) -> None:
        self.tune(session)

    def outcome(self, session: Work[TuningOutcome], common: Mapping[str, Any]) -> tuple[TuningOutcome, list[pa.Table]]:
        results = Results.read(self.plan, session.folder, list(session.measured.values()))
        return TuningOutcome(**self.common(session, common, results)), tables_of(results.frames)


class Comparison(_Matched[ComparisonOutcome]):
    """``archbench compare``."""

    kind = ComparisonOutcome
    least: ClassVar[int] = 2

    def measure(self, session: Work[ComparisonOutcome]) -> None:
        self.tune(session)
        self.confirm(session)
        turns = [(number, group) for number, group in enumerate(self.turns(session)) if len(group) > 1]
        speeds = [speed_cells(self.plan, group, number) for number, group in turns]
        costs = [cell for one in session.taking_part() for cell in cost_cells(self.plan, one)]
        session.run([*(cell for group in speeds for cell in group), *costs], turns=True)
        # p holds for one analysis, not for the best of several, so earlier ones are kept.
        analysis = {"seeds": self.plan.seeds, "margin": self.plan.margin}
        session.kept["looks"] = [one for one in session.kept.get("looks", []) if one != analysis] + [analysis]

    def confirm(self, session: Work[ComparisonOutcome]) -> None:
        """Train fresh seeds at the chosen learning rates. An architecture that learns at no rate is left out."""
        cells = []
        for one in session.taking_part():
            found = self.tunings[one.architecture]
            if found.learning_rate is not None:
                cells.append(seed_cells(self.plan, one, self.budget, found.learning_rate))
            elif one.architecture == self.plan.baseline:
                step = "Give another --baseline, or a recipe at which it learns"
                raise UsageError(f"baseline {self.plan.baseline}", str(found.note), step)
            else:
                session.leave_out(one, found.note)
        # Seed by seed, so that an interrupted comparison has some seeds of all.
        session.run([cell for turn in zip(*cells, strict=True) for cell in turn])

    def turns(self, session: Work[ComparisonOutcome]) -> list[list[Contender]]:
        """Groups that are timed in turns. Later architectures form a group with the baseline, measured again."""
        return [
            [one for one in session.taking_part() if one.architecture in (*group, self.plan.baseline)]
            for group in session.kept["turns"]
        ]

    def outcome(
        self, session: Work[ComparisonOutcome], common: Mapping[str, Any]
    ) -> tuple[ComparisonOutcome, list[pa.Table]]:
        plan, contenders = self.plan, session.taking_part()
        results = Results.read(plan, session.folder, list(session.measured.values()))
        finished, names = results.finished, [one.architecture for one in contenders]
        quality, units = results.quality({name: self.tunings[name] for name in names})
        costs = cost_rows(results.of("speed"), finished, plan.baseline, names)
        more: dict[str, Any] = {}
        if (reason := results.mixed_machines()) is not None:
            costs, more["withheld"] = [withheld(row) for row in costs], reason
        state = {one.architecture: one.size.state_bytes for one in contenders if one.size is not None}
        costs += exact_rows("state", "decoding state at the trained context", "B", state, plan.baseline)
        if plan.evaluation is not None:
            more["accuracy"] = results.accuracy(names)
        outcome = ComparisonOutcome(
            **self.common(session, common, results),
            quality=quality,
            units=units,
            spent=[results.spent(name) for name in names],
            costs=costs,
            curves=cost_curves(results.of("cost"), finished, results.causes),
            positions=positions(results.of("seed"), finished),
            looks=session.kept["looks"],
            conclusion=conclusion(plan, quality),
            **more,
        )
        return outcome, tables_of(results.frames)


def turn_groups(kept: Mapping[str, Any], architectures: Sequence[str]) -> list[list[str]]:
    """The groups that take turns: the architectures of the first session, then those that each later one added.

    Args:
        kept: the content of the plan file before this session.
    """
    before = kept.get("plan", {}).get("architectures", list(architectures))
    groups: list[list[str]] = kept.get("turns", [before])
    added = [name for name in architectures if not any(name in group for group in groups)]
    return [*groups, added] if added else groups


def seed_cells(plan: ComparePlan, contender: Contender, budget: Budget, learning_rate: float) -> list[RunCell]:
    """Fresh seeds at the chosen learning rate on the whole budget."""
    training: dict[str, Any] = {**budget_fields(budget), "learning_rate": learning_rate}
    if (updates := updates_of(plan, contender, budget)) is not None:
        training["validate_every"] = max(1, round(updates / VALIDATIONS))
    phases = ("train", "quality", "positions")
    return [
        run_cell(plan, contender, "seed", phases, training=training, seed=seed, beside=True, evaluation=plan.evaluation)
        for seed in range(plan.seeds)
    ]


def speed_cells(plan: ComparePlan, contenders: Sequence[Contender], group: int = 0) -> list[RunCell]:
    """All architectures in turns, A B … and back; the baseline stands at both ends, for the noise floor.

    Args:
        group: number of the group that takes turns; its sweeps have numbers of their own.
    """
    training = {"steps": SPEED_STEPS, "validate_every": None, "checkpoint_every": None}
    phases = ("train", "prefill", "decode")
    baseline = next(one for one in contenders if one.architecture == plan.baseline)
    order = [(baseline, False), *((one, False) for one in contenders if one is not baseline), (baseline, True)]
    return [
        run_cell(
            plan, one, "speed", phases, training=training, seed=0, block=MOST_SWEEPS * group + sweep, repeated=repeated
        )
        for sweep in range(plan.sweeps)
        for one, repeated in (order if sweep % 2 == 0 else order[::-1])
    ]


def cost_cells(plan: ComparePlan, contender: Contender) -> list[RunCell]:
    """One run for each context length, so that each has its own peak memory."""
    assert contender.context_length is not None
    cells = []
    for multiple in plan.cost_multiples:
        length = multiple * contender.context_length
        new = min(COST_NEW_TOKENS, length // 2)
        speed = {"prompt_lengths": [length - new], "batch_sizes": [1], "new_tokens": new, "repeats": 3, "warmup": 1}
        phases = ("prefill", "decode")
        cells.append(run_cell(plan, contender, "cost", phases, seed=0, speed=speed, context_length=length))
    return cells


def budget_of(plan: ComparePlan, baseline: Contender, seconds_per_update: float) -> dict[str, float]:
    """The budget of one whole run, the same for all: what the recipe gives the baseline.

    Args:
        seconds_per_update: of the baseline, measured; for ``--match time``.
    """
    assert baseline.size is not None
    recipe, per_update = plan.run.training, tokens_per_update(plan, baseline)
    if recipe.seconds is not None:
        return {"seconds": recipe.seconds}
    if recipe.flops is not None:
        tokens = recipe.flops / baseline.size.training_flops_per_token
    else:
        tokens = recipe.tokens if recipe.tokens is not None else (recipe.steps or 0) * per_update
    if plan.match == "flops":
        return {"flops": tokens * baseline.size.training_flops_per_token}
    if plan.match == "time":
        return {"seconds": tokens / per_update * seconds_per_update}
    return {"tokens": float(round(tokens))}
