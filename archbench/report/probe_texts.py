"""What a probe shows and does not show, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING

from archbench.presentation.quantities import counted
from archbench.report.conclusions import Conclusions

if TYPE_CHECKING:
    from archbench.study.probe_outcome import ProbeOutcome


def best_first(outcome: ProbeOutcome) -> tuple[str, ...]:
    """The architectures, by their mean way from chance to all right, which is only an order for tables."""
    learned = {
        name: [max(0.0, ((score.mean or 0.0) - score.chance) / (1 - score.chance)) for score in outcome.scores
               if score.architecture == name]
        for name in outcome.names
    }  # fmt: skip
    return tuple(sorted(outcome.names, key=lambda name: -fmean(learned[name] or [0.0])))


def conclusions(outcome: ProbeOutcome) -> Conclusions:
    """For the page."""
    conditions = sum(len(task.conditions) for task in outcome.tasks)
    solved = {
        name: sum(score.verdict == "solved" for score in outcome.scores if score.architecture == name)
        for name in best_first(outcome)
    }
    unsolved = [
        f"{task.name}, {condition}"
        for task in outcome.tasks
        for condition in task.conditions
        if not any(
            score.verdict in ("solved", "partly learned")
            for score in outcome.scores
            if (score.task, score.condition) == (task.name, condition)
        )
    ]
    details = "Solved: every seed answers at least 99 %. Nobody learned, under this budget: "
    return Conclusions(
        headline=f"Solved of {counted(conditions, 'condition')}: "
        f"{', '.join(f'{number} by {name}' for name, number in solved.items())}.",
        details=f"{details}{'; '.join(unsolved) or 'nothing that was asked'}.",
        matched=tuple(_matched(outcome)),
        limits=(
            "What an architecture cannot do: more updates, another size or another learning rate may be enough.",
            "A ranking: there are few seeds and many tasks, and nothing is corrected for their number.",
            "Equal states: what decoding keeps of a sequence differs, and stands below the scores of each task.",
        ),
        meanings=(),
    )


def _matched(outcome: ProbeOutcome) -> Iterator[str]:
    plan = outcome.plan
    if plan.parameters is None:
        sizes = {size.parameters for model in outcome.models for size in model.sizes.values()}
        yield f"Not the size: presets are as they are, with {min(sizes):,} to {max(sizes):,} parameters."
    else:
        yield f"All have {plan.parameters:,} non-embedding active parameters within 2 %."
    yield (
        f"For each of {counted(plan.seeds, 'seed')}, all see the same training examples in the same order, with the "
        "same number of updates, and are tested on the same examples."
    )
    yield (
        "All try the same learning rates; the scores are those of the rate with the best validation examples, which "
        "are no test examples."
    )
