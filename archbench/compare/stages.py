"""The cells of each stage of a comparison: pilots, trials, fresh seeds, turns of speed, context lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from archbench.compare.cells import Cell, Record, Stage, bits_per_byte, cell_key, known_record
from archbench.compare.learning_rates import Point, choose, next_factor
from archbench.compare.plan import FIRST_TUNING_SEED, ComparePlan
from archbench.config import RunConfig
from archbench.measure.machine import usable_cpus
from archbench.measure.sizes import Size

PILOT_STEPS = 20
SPEED_STEPS = 30
"""Updates that are trained in order to time one."""

COST_NEW_TOKENS = 32
VALIDATIONS = 8
"""Of a training run whose curve is drawn."""

Budget = Mapping[str, float]
"""One of flops, tokens, seconds -> its amount: as :class:`archbench.config.TrainingConfig` takes it."""


class SharedPlan(Protocol):
    """What all cells need to know: the run that they have in common, and how many go on at a time."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def jobs(self) -> int: ...


class TuningPlan(SharedPlan, Protocol):
    """And what trials of learning rates do."""

    @property
    def tuning_seeds(self) -> int: ...
    @property
    def tuning_share(self) -> float: ...
    @property
    def tunes(self) -> bool: ...
    @property
    def factors(self) -> tuple[float, ...]: ...


_NO_BUDGET = {"tokens": None, "steps": None, "flops": None, "seconds": None}


@dataclass(frozen=True)
class Contender:
    """An architecture at the size at which it takes part.

    Attributes:
        architecture: its name.
        overrides: fields of its preset that are replaced, the matched ones among them.
        context_length: T that it is trained on.
        size: parameters, FLOPs and state bytes; None for one that could not be built.
        deviation: of the matched quantity from the baseline's, relative; None where nothing is matched.
        matched: whether it takes part.
        reason: why it does not.
        source: digest of its plugin's code.
    """

    architecture: str
    overrides: Mapping[str, Any]
    context_length: int
    size: Size | None
    deviation: float | None
    matched: bool
    reason: str | None
    source: str


def pilot_cell(plan: SharedPlan, contender: Contender) -> Cell:
    """A few updates and one scoring: what a run of it takes, from start to end."""
    training = {"steps": PILOT_STEPS, "validate_every": None, "checkpoint_every": None}
    return run_cell(
        plan, contender, "pilot", ("train", "quality"), training=training, seed=FIRST_TUNING_SEED, beside=True
    )


def tuning_cells(plan: TuningPlan, contender: Contender, budget: Budget, factors: Sequence[float]) -> list[Cell]:
    """Each learning rate with each tuning seed, on a share of the budget."""
    share = _fields(budget, plan.tuning_share)
    rate = plan.run.training.learning_rate
    return [
        run_cell(
            plan,
            contender,
            "tune",
            ("train", "quality"),
            training={**share, "learning_rate": rate * factor, "validate_every": None},
            seed=FIRST_TUNING_SEED + number,
            beside=True,
            factor=factor,
        )
        for factor in factors
        for number in range(plan.tuning_seeds)
    ]


def tuning_points(folder: Path, tried: Sequence[tuple[Cell, Record]], learning_rate: float) -> list[Point]:
    """What each learning rate that was tried came to.

    Args:
        tried: cells of :func:`tuning_cells`, each with its record.
        learning_rate: the recipe's.

    Raises:
        StorageError: a cell's rows cannot be read.
    """
    found: dict[float, list[float | None]] = {}
    for cell, record in tried:
        assert cell.factor is not None
        found.setdefault(cell.factor, []).append(bits_per_byte(folder, record))
    return [Point(learning_rate * factor, factor, tuple(bits)) for factor, bits in found.items()]


def foreseen(plan: TuningPlan, contender: Contender, budget: Budget, folder: Path) -> tuple[list[Cell], float | None]:
    """The trials as far as they are known, and the learning rate that they lead to.

    That is the recipe's for as long as a trial is still to be made, and None where no rate that was tried will do.

    Raises:
        StorageError: a cell's record or rows cannot be read.
    """
    rate = plan.run.training.learning_rate
    if not plan.tunes:
        return [], rate
    cells = tuning_cells(plan, contender, budget, plan.factors)
    while True:
        tried = [(cell, record) for cell in cells if (record := known_record(folder, cell.key)) is not None]
        if len(tried) < len(cells):
            return cells, rate
        points = tuning_points(folder, tried, rate)
        further = next_factor(points, plan.factors)
        if further is None:
            return cells, choose(points).learning_rate
        cells += tuning_cells(plan, contender, budget, [further])


def seed_cells(plan: ComparePlan, contender: Contender, budget: Budget, learning_rate: float) -> list[Cell]:
    """Fresh seeds at the learning rate that was chosen, on the whole budget."""
    training: dict[str, Any] = {**_fields(budget), "learning_rate": learning_rate}
    if (updates := updates_of(plan, contender, budget)) is not None:
        training["validate_every"] = max(1, round(updates / VALIDATIONS))
    phases = ("train", "quality", "positions")
    return [
        run_cell(plan, contender, "seed", phases, training=training, seed=seed, beside=True)
        for seed in range(plan.seeds)
    ]


def speed_cells(plan: ComparePlan, contenders: Sequence[Contender]) -> list[Cell]:
    """Every architecture in turns, A B … and back again; the baseline stands at both ends, for the noise floor."""
    training = {"steps": SPEED_STEPS, "validate_every": None, "checkpoint_every": None}
    baseline = next(one for one in contenders if one.architecture == plan.baseline)
    order = [(baseline, False), *((one, False) for one in contenders if one is not baseline), (baseline, True)]
    return [
        run_cell(
            plan,
            contender,
            "speed",
            ("train", "prefill", "decode"),
            training=training,
            seed=0,
            block=block,
            repeated=repeated,
        )
        for block in range(plan.sweeps)
        for contender, repeated in (order if block % 2 == 0 else order[::-1])
    ]


def cost_cells(plan: ComparePlan, contender: Contender) -> list[Cell]:
    """One run a context length, so that each has a peak memory of its own."""
    cells = []
    for multiple in plan.cost_multiples:
        length = multiple * contender.context_length
        new = min(COST_NEW_TOKENS, length // 2)
        speed = {"prompt_lengths": [length - new], "batch_sizes": [1], "new_tokens": new, "repeats": 3, "warmup": 1}
        cells.append(
            run_cell(plan, contender, "cost", ("prefill", "decode"), seed=0, speed=speed, context_length=length)
        )
    return cells


def budget_of(plan: ComparePlan, baseline: Contender, seconds_per_update: float) -> dict[str, float]:
    """The whole budget of one run, the same for all, from what the recipe gives the baseline.

    Args:
        seconds_per_update: the baseline's, measured; for ``--match time``.
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


def updates_of(plan: ComparePlan, contender: Contender, budget: Budget) -> float | None:
    """Optimizer updates that the budget pays for; None where that depends on the machine."""
    assert contender.size is not None
    per_update = tokens_per_update(plan, contender)
    if "tokens" in budget:
        return budget["tokens"] / per_update
    if "flops" in budget:
        return budget["flops"] / contender.size.training_flops_per_token / per_update
    return None


def tokens_per_update(plan: SharedPlan, contender: Contender) -> int:
    """B · T of one optimizer update, micro-batches together."""
    return plan.run.training.batch_size * plan.run.training.accumulation * contender.context_length


def _fields(budget: Budget, share: float = 1.0) -> dict[str, Any]:
    """A share of the budget as a recipe's field; a number of tokens is whole."""
    return {unit: round(amount * share) if unit == "tokens" else amount * share for unit, amount in budget.items()}


def run_cell(
    plan: SharedPlan,
    contender: Contender,
    stage: Stage,
    phases: tuple[str, ...],
    *,
    seed: int,
    training: Mapping[str, Any] | None = None,
    speed: Mapping[str, Any] | None = None,
    context_length: int | None = None,
    beside: bool = False,
    factor: float | None = None,
    block: int | None = None,
    repeated: bool = False,
) -> Cell:
    """One run of a contender: what all share, with what this cell has of its own.

    Args:
        training: fields of the recipe that are replaced, the budget among them.
        speed: fields of what is timed that are replaced.
        context_length: T of the model; None for the one that it is trained on.
        beside: others run at the same time, so that it has its share of the threads.
    """
    shared = plan.run
    length = context_length if context_length is not None else contender.context_length
    overrides = {**contender.overrides, "context_length": length}
    config: RunConfig = shared.override(
        architecture=contender.architecture,
        overrides=overrides,
        phases=phases,
        seed=seed,
        threads=_threads(plan) if beside else shared.threads,
        training={**dict(shared.training), **(_NO_BUDGET if training else {}), **(training or {})},
        speed={**dict(shared.speed), **(speed or {})},
        out="results",
    )
    key = cell_key(config, contender.source, stage=stage if stage == "pilot" else None, block=block, repeated=repeated)
    checked_by = None if stage == "pilot" else pilot_cell(plan, contender).key
    return Cell(stage, config, key, length, factor=factor, block=block, repeated=repeated, checked_by=checked_by)


def _threads(plan: SharedPlan) -> int | None:
    """CPU threads of each of the runs that go on beside each other."""
    if plan.jobs == 1:
        return plan.run.threads
    return max(1, (plan.run.threads or len(usable_cpus())) // plan.jobs)
