"""The rungs of a ladder: each architecture at each size, and the runs that each takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from archbench.compare.cells import Cell
from archbench.compare.contenders import matched, shared_fields
from archbench.compare.stages import Contender, foreseen, run_cell, tokens_per_update, tuning_cells
from archbench.errors import UsageError
from archbench.plugin.registry import load
from archbench.scaling.plan import ScalePlan


@dataclass(frozen=True)
class Rung:
    """One architecture at one size.

    Attributes:
        size: N that was asked for.
        contender: the architecture at that size, or why it has none.
    """

    size: int
    contender: Contender

    @property
    def architecture(self) -> str:
        return self.contender.architecture

    @property
    def key(self) -> tuple[str, int]:
        return self.architecture, self.size


def rungs(plan: ScalePlan) -> list[Rung]:
    """Every architecture at every size, size by size; those that cannot be made so large have the reason.

    Raises:
        UnknownNameError: there is no architecture of one of the names, or it has no such preset.
        ArchbenchError: the first architecture, whose context all have, cannot be loaded.
    """
    fixed = shared_fields(plan.run, load(plan.architectures[0], plan.run.plugins))
    return [Rung(size, matched(plan.run, name, fixed, size)) for size in plan.sizes for name in plan.architectures]


def trials(plan: ScalePlan, rung: Rung, factors: Sequence[float]) -> list[Cell]:
    """Learning rates at the smallest budget."""
    return tuning_cells(plan, rung.contender, {"tokens": plan.tuning_budget}, factors)


def foreseen_trials(plan: ScalePlan, rung: Rung, folder: Path) -> tuple[list[Cell], float | None]:
    """Those that are known to be made, and the learning rate that they lead to, as far as that is known."""
    return foreseen(plan, rung.contender, {"tokens": plan.tuning_budget}, folder)


def points(plan: ScalePlan, rung: Rung, learning_rate: float) -> list[Cell]:
    """Each budget with each seed, its schedule from beginning to end: a loss on the way is not that of a shorter run
    (Hoffmann et al. 2022, arXiv:2203.15556, appendix B)."""
    return [
        run_cell(
            plan,
            rung.contender,
            "point",
            ("train", "quality"),
            training={"tokens": budget, "learning_rate": learning_rate, "validate_every": None},
            seed=seed,
            beside=True,
        )
        for budget in plan.budgets
        for seed in range(plan.seeds)
    ]


def check_budgets(plan: ScalePlan, rung: Rung) -> None:
    """That every budget is some updates.

    Raises:
        UsageError: the smallest is less than one.
    """
    tokens = tokens_per_update(plan, rung.contender)
    if min(plan.budgets) < tokens:
        cause = f"one update reads {tokens:,} tokens"
        step = "Give larger --budgets, or a smaller --config training.batch_size"
        raise UsageError(f"a budget of {min(plan.budgets):,} tokens", cause, step)
