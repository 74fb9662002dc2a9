"""Base and head beside each other: counts once, times in rounds of fresh processes until the gate can be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from archbench.errors import ArchbenchError, from_dict
from archbench.regression.sides import Samples, Side, SideProcess
from archbench.regression.statistics import Estimate, level, paired, unpaired
from archbench.regression.verdicts import LIMIT, Row, timed_row

Levels = dict[tuple[str, str], list[float]]
"""(architecture, metric) -> level of each process."""

Pairs = dict[tuple[str, str], list[tuple[float, float]]]
"""(architecture, metric) -> levels of base and head of each pair of processes that took turns."""

SAMPLES = {"train_step": 4, "prefill": 8, "decode": 16}
"""Samples a turn."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: at least, each of fresh processes.
        max_rounds: at most; there are more than ``rounds`` only while the intervals include the gate.
        turns: of each process in a round.
        samples: metric -> samples a turn.
        limit: the gate.
    """

    rounds: int = 3
    max_rounds: int = 12
    turns: int = 8
    samples: Mapping[str, int] = field(default_factory=lambda: dict(SAMPLES))
    limit: float = LIMIT


def decided(estimate: Estimate, limit: float) -> bool:
    """Whether the interval lies on one side of the gate."""
    return estimate.high < limit or estimate.low > limit


@dataclass(frozen=True)
class Counted:
    """What one side's process said of itself and counted.

    Attributes:
        archbench: the folder of the archbench that it ran.
        files: architecture -> the plugin's file, of those that it could load.
        costs: architecture -> metric -> count.
        errors: architecture -> why it has no counts.
    """

    archbench: str
    files: dict[str, str | None]
    costs: dict[str, dict[str, float | None]]
    errors: dict[str, ArchbenchError]


def counted(sides: Sequence[Side]) -> list[Counted]:
    """Counts of each side, all at the same time: what else runs does not change them."""
    with ExitStack() as stack:
        processes = [stack.enter_context(SideProcess(side)) for side in sides]
        for process in processes:
            process.ask_exact()
        found = []
        for process in processes:
            said, answer = process.answer(), process.answer()
            errors = {name: from_dict(error) for name, error in {**said["errors"], **answer["errors"]}.items()}
            found.append(Counted(said["archbench"], said["files"], answer["costs"], errors))
        return found


def one_round(sides: Sequence[Side], plan: Plan, first: int) -> list[Samples]:
    """Samples of one fresh process a side; they take turns, so that what the machine does meanwhile hits all alike."""
    with ExitStack() as stack:
        processes = [stack.enter_context(SideProcess(side)) for side in sides]
        for process in processes:
            for error in process.answer()["errors"].values():
                raise from_dict(error)
        found: list[Samples] = [{} for _ in sides]
        for turn in range(plan.turns):
            order = range(len(sides)) if (turn + first) % 2 == 0 else reversed(range(len(sides)))
            for number in order:
                for architecture, metrics in processes[number].turn(plan.samples).items():
                    kept = found[number].setdefault(architecture, {})
                    for metric, samples in metrics.items():
                        kept.setdefault(metric, []).extend(samples)
        return found


def alternated(
    base: Side,
    head: Side,
    plan: Plan,
    *,
    progress: Callable[[str], None] = lambda text: None,
    wanted: Iterable[tuple[str, str]] | None = None,
) -> Pairs:
    """Rounds of a base and a head process in turns, until every interval lies on one side of the gate.

    Looking after each round would make the 5 % of a bound more where the truth is the gate itself; where there is no
    change, or one twice as large, it decides the sooner the clearer the case is (benchmarks/regression_gate.py).

    Args:
        wanted: architectures and metrics that have to be decided; None for all.
    """
    pairs: Pairs = {}
    judged = None if wanted is None else set(wanted)
    for number in range(plan.max_rounds):
        progress(f"round {number + 1} of {plan.rounds} to {plan.max_rounds}")
        found = one_round([base, head], plan, number)
        for architecture, metrics in found[0].items():
            for metric, samples in metrics.items():
                both = level(samples), level(found[1][architecture][metric])
                pairs.setdefault((architecture, metric), []).append(both)
        open_ones = [name for name in pairs if judged is None or name in judged]
        if number + 1 >= plan.rounds and all(decided(estimated(pairs[name]), plan.limit) for name in open_ones):
            break
    return pairs


def estimated(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Head / base of processes that took turns."""
    return paired([base for base, _ in pairs], [head for _, head in pairs])


def compare_alternated(
    base: Side,
    head: Side,
    plan: Plan,
    *,
    judged: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """The timing gate, with its rerun for what is beyond it."""
    pairs = alternated(base, head, plan, progress=progress)
    beyond = [name for name, levels in pairs.items() if judged and estimated(levels).low > plan.limit]
    again: Pairs = {}
    if beyond:
        progress(f"beyond the gate: {', '.join(' '.join(name) for name in beyond)}; once more")
        again = alternated(base, head, plan, progress=progress, wanted=beyond)
    rows = []
    for name, levels in pairs.items():
        rerun = estimated(again[name]) if name in beyond else None
        base_levels, head_levels = [b for b, _ in levels], [h for _, h in levels]
        estimate = estimated(levels)
        rows.append(timed_row(*name, base_levels, head_levels, estimate, rerun, judged=judged, limit=plan.limit))
    return rows


def levels_of(
    side: Side,
    plan: Plan,
    *,
    enough: Callable[[Levels], bool] = lambda levels: True,
    progress: Callable[[str], None] = lambda text: None,
) -> Levels:
    """Levels of fresh processes of one side alone: ``plan.rounds``, and more until they are enough."""
    levels: Levels = {}
    for number in range(plan.max_rounds):
        progress(f"process {number + 1} of {plan.rounds} to {plan.max_rounds}")
        (found,) = one_round([side], plan, number)
        for architecture, metrics in found.items():
            for metric, samples in metrics.items():
                levels.setdefault((architecture, metric), []).append(level(samples))
        if number + 1 >= plan.rounds and enough(levels):
            break
    return levels


def compare_saved(
    base: Mapping[str, Sequence[float]],
    head: Side,
    plan: Plan,
    architecture: str,
    *,
    judged: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """The timing gate against saved levels: processes of the head alone, and a rerun for what is beyond it.

    Args:
        base: metric -> level of each process; a metric that it lacks is NEW.
    """

    def measured(wanted: Sequence[str]) -> dict[str, list[float]]:
        def enough(levels: Levels) -> bool:
            estimates = [unpaired(base[metric], levels[architecture, metric]) for metric in wanted]
            return all(decided(estimate, plan.limit) for estimate in estimates)

        levels = levels_of(head, plan, enough=enough, progress=progress)
        return {metric: found for (_, metric), found in levels.items()}

    levels = measured([metric for metric in plan.samples if judged and base.get(metric)])
    estimates = {metric: unpaired(base[metric], found) for metric, found in levels.items() if base.get(metric)}
    beyond = [metric for metric, estimate in estimates.items() if judged and estimate.low > plan.limit]
    if beyond:
        progress(f"beyond the gate: {', '.join(beyond)}; once more")
    again = measured(beyond) if beyond else {}
    return [
        timed_row(
            architecture,
            metric,
            base.get(metric, ()),
            found,
            estimates.get(metric),
            unpaired(base[metric], again[metric]) if metric in beyond else None,
            judged=judged,
            limit=plan.limit,
        )
        for metric, found in levels.items()
    ]
