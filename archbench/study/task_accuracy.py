"""Is one architecture better at a downstream task than the baseline? Paired over questions, and over fresh seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from archbench.config import Frozen
from archbench.files.loader import read_lines
from archbench.study.statistics import Estimate, combined, holm, mean, welch
from archbench.study.verdicts import CONFIDENCE, FEWEST_SEEDS

JUDGED = ("acc", "exact_match")
"""The metric of a task that is compared: the first of these that it has, so that nobody chooses after the fact."""

Answers = Mapping[str, npt.NDArray[np.float64]]
"""Task -> (seeds, questions), what each answer is worth."""


class TaskPlan(Frozen):
    """What every fresh seed of a comparison is asked."""

    tasks: tuple[str, ...] = Field(min_length=1, description="tasks or groups of lm-evaluation-harness")
    shots: int | None = Field(None, ge=0, description="examples before each question; null for each task's own")
    limit: int | None = Field(None, ge=1, description="most questions of each task; null for all")
    data: str | None = Field(None, description="folder of the tasks' data sets; null for the hub and its cache")


@dataclass(frozen=True)
class AccuracyRow:
    """One architecture at one task, as in ``comparison.json``; differences are to the baseline's, in shares of 1.

    Attributes:
        seeds, questions: that were asked.
        accuracy: mean over both.
        seed_low, seed_high: interval of the difference from seeds alone (Welch).
        question_low, question_high: from questions alone, paired.
        low, high: from both; this one decides.
        p, p_holm: of no difference; ``p_holm`` is adjusted for all tasks of all architectures.
    """

    task: str
    architecture: str
    seeds: int
    questions: int
    accuracy: float
    difference: float | None = None
    seed_low: float | None = None
    seed_high: float | None = None
    question_low: float | None = None
    question_high: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: Literal["baseline", "better", "worse", "inconclusive", "no verdict"] = "no verdict"


def judged(answers: Mapping[str, Answers], baseline: str) -> list[AccuracyRow]:
    """Each task: the baseline's row, then the others', of which one is better or worse if Holm's p is below 0.05.

    The difference is that of mean accuracies. Its variance is the seeds' (Welch) and the questions', paired because all
    answer the same ones, added as for bits per byte (:func:`archbench.study.statistics.combined`).
    """
    rows: list[AccuracyRow] = []
    for task, own in answers.get(baseline, {}).items():
        rows.append(AccuracyRow(task, baseline, len(own), own.shape[1], float(own.mean()), verdict="baseline"))
        for name, found in answers.items():
            if name != baseline and task in found:
                rows.append(_compared(task, name, found[task], own))
    tested = [row.p for row in rows if row.p is not None]
    adjusted = iter(holm(tested))
    return [row if row.p is None else _decided(row, next(adjusted)) for row in rows]


def _compared(task: str, name: str, other: npt.NDArray[np.float64], own: npt.NDArray[np.float64]) -> AccuracyRow:
    row = AccuracyRow(task, name, len(other), other.shape[1], float(other.mean()))
    if min(len(other), len(own)) < FEWEST_SEEDS or other.shape[1] != own.shape[1] or other.shape[1] < 2:
        return row
    seeds = welch(other.mean(axis=1), own.mean(axis=1))
    questions = mean(other.mean(axis=0) - own.mean(axis=0))
    both = combined(seeds, questions)
    (seed_low, seed_high), (question_low, question_high), (low, high) = map(_interval, (seeds, questions, both))
    return replace(
        row, difference=seeds.value, seed_low=seed_low, seed_high=seed_high, question_low=question_low,
        question_high=question_high, low=low, high=high, p=both.p,
    )  # fmt: skip


def _interval(estimate: Estimate) -> tuple[float, float]:
    return estimate.interval(CONFIDENCE)


def _decided(row: AccuracyRow, p_holm: float) -> AccuracyRow:
    assert row.difference is not None
    verdict: Literal["better", "worse", "inconclusive"] = "better" if row.difference > 0 else "worse"
    return replace(row, p_holm=p_holm, verdict=verdict if p_holm < 1 - CONFIDENCE else "inconclusive")


def answers_of(runs: Sequence[Path]) -> dict[str, npt.NDArray[np.float64]]:
    """What the runs, each a seed of one architecture, answered: of the tasks that every one was asked.

    Raises:
        StorageError: a file of samples is damaged.
    """
    seeds = [dict(_asked(run)) for run in runs]
    shared = [task for task in (seeds[0] if seeds else ()) if all(task in one for one in seeds)]
    return {task: np.stack([one[task] for one in seeds]) for task in shared}


def _asked(run: Path) -> Sequence[tuple[str, npt.NDArray[np.float64]]]:
    found = []
    for file in sorted(run.glob("samples-*.jsonl")):
        again = "Repeat the comparison in another folder: the weights that would answer again are gone"
        lines = read_lines(file, next_step=again, sealing="required")
        metric = next((one for one in JUDGED if lines and one in lines[0]), None)
        if metric is not None:
            task = re.sub(r"^samples-|-\d+$", "", file.stem)
            found.append((task, np.array([line[metric] for line in lines], dtype=np.float64)))
    return found
