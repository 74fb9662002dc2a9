"""The timing gate: rounds of fresh processes until base and head can be told apart, and a rerun for what is slower."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from archbench.errors import ArchbenchError, from_dict
from archbench.regression.estimates import Estimate, level, paired, unpaired
from archbench.regression.sides import Samples, Side, SideProcess
from archbench.regression.verdict_table import LIMIT, Row, timed_row

Name = tuple[str, str]
"""Architecture and metric."""

SUITE = "archbench"
"""In place of an architecture: archbench itself."""

Levels = dict[Name, list[float]]
"""The level of each process (:func:`archbench.regression.estimates.level`)."""

Progress = Callable[[str], None]

SAMPLES = {"train_step": 4, "prefill": 8, "decode": 16}
"""Samples a turn."""


def _silent(text: str) -> None:
    return None


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: fewest, each of fresh processes.
        max_rounds: most; there are more than ``rounds`` only while the intervals include the gate.
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
    """What one side's process loaded and counted.

    Attributes:
        archbench: the folder of the archbench that it ran.
        files: architecture -> the plugin's file, of those that it could load.
        costs: architecture -> metric -> count; archbench's own under :data:`SUITE`.
        reasons: architecture -> metric -> why there is no count.
        errors: architecture -> why it has no counts.
    """

    archbench: str
    files: dict[str, str | None]
    costs: dict[str, dict[str, float | None]]
    reasons: dict[str, dict[str, str]]
    errors: dict[str, ArchbenchError]


def counted(sides: Sequence[Side]) -> list[Counted]:
    """Counts of each side, all at the same time, since nothing else affects them."""
    with ExitStack() as stack:
        processes = [stack.enter_context(SideProcess(side)) for side in sides]
        for process in processes:
            process.ask_exact()
        found = []
        for process in processes:
            loaded, answer = process.answer(), process.answer()
            errors = {name: from_dict(error) for name, error in {**loaded["errors"], **answer["errors"]}.items()}
            found.append(Counted(loaded["archbench"], loaded["files"], answer["costs"], answer["reasons"], errors))
        return found


def one_round(sides: Sequence[Side], plan: Plan, first: int) -> list[Samples]:
    """Samples of one fresh process a side; they take turns, so that other load affects all alike."""
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


def levels_of(
    sides: Sequence[Side],
    plan: Plan,
    *,
    enough: Callable[[list[Levels]], bool] = lambda levels: True,
    progress: Progress = _silent,
) -> list[Levels]:
    """Levels of each side's processes: of ``plan.rounds`` rounds, and more until they are enough.

    Testing after each round would raise a bound's 5 % where the truth is the gate itself; where there is no change, or
    one twice as large, it decides earlier the clearer the case is (benchmarks/regression_gate.py).
    """
    levels: list[Levels] = [{} for _ in sides]
    for number in range(plan.max_rounds):
        progress(f"round {number + 1} of {plan.rounds} to {plan.max_rounds}")
        for kept, found in zip(levels, one_round(sides, plan, number), strict=True):
            for architecture, metrics in found.items():
                for metric, samples in metrics.items():
                    kept.setdefault((architecture, metric), []).append(level(samples))
        if number + 1 >= plan.rounds and enough(levels):
            break
    return levels


def compare_alternated(
    base: Side, head: Side, plan: Plan, *, judged: bool = True, progress: Progress = _silent
) -> list[Row]:
    """The timing gate on base and head processes that take turns."""

    def measure(wanted: Collection[Name] | None) -> list[Levels]:
        def enough(levels: list[Levels]) -> bool:
            names = levels[1] if wanted is None else wanted
            return all(decided(paired(levels[0][name], levels[1][name]), plan.limit) for name in names)

        return levels_of([base, head], plan, enough=enough, progress=progress)

    return _gate(measure, paired, plan, judged=judged, progress=progress)


def compare_saved(
    base: Mapping[str, list[float]],
    head: Side,
    plan: Plan,
    architecture: str,
    *,
    judged: bool = True,
    progress: Progress = _silent,
) -> list[Row]:
    """The timing gate on processes of the head alone, against saved levels.

    Args:
        base: metric -> level of each process; a metric that it lacks is NEW.
    """
    saved: Levels = {(architecture, metric): base.get(metric, []) for metric in plan.samples}

    def measure(wanted: Collection[Name] | None) -> list[Levels]:
        names = [name for name in saved if judged and saved[name]] if wanted is None else wanted

        def enough(levels: list[Levels]) -> bool:
            return all(decided(unpaired(saved[name], levels[0][name]), plan.limit) for name in names)

        return [saved, *levels_of([head], plan, enough=enough, progress=progress)]

    return _gate(measure, unpaired, plan, judged=judged, progress=progress)


def _gate(
    measure: Callable[[Collection[Name] | None], list[Levels]],
    estimate: Callable[[Sequence[float], Sequence[float]], Estimate],
    plan: Plan,
    *,
    judged: bool,
    progress: Progress,
) -> list[Row]:
    """A row for each time of the head.

    Args:
        measure: levels of base and head, until the given names are decided; None for all.
        estimate: of head / base.
    """
    base, head = measure(None)
    estimates = {name: estimate(base[name], levels) for name, levels in head.items() if base[name]}
    beyond = [name for name, found in estimates.items() if judged and found.low > plan.limit]
    reruns = {}
    if beyond:
        progress(f"beyond the gate: {', '.join(' '.join(name) for name in beyond)}; once more")
        base_again, head_again = measure(beyond)
        reruns = {name: estimate(base_again[name], head_again[name]) for name in beyond}
    return [
        timed_row(*name, base[name], levels, estimates.get(name), reruns.get(name), judged=judged, limit=plan.limit)
        for name, levels in head.items()
    ]
