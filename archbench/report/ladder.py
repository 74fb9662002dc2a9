"""``scale.json``, what ``archbench scale`` leaves: read, and checked field by field.

Quantities are in base units (tokens, FLOP, nats a token); errors are relative. A null is a quantity that is not known.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from archbench.errors import StorageError
from archbench.report.outcome import Part, checked, named_text
from archbench.scaling.findings import Forecast, Point, Ranking
from archbench.scaling.law import Law
from archbench.scaling.plan import FORMAT, PLAN, SCALE


class Plan(Part):
    architectures: list[str]
    sizes: list[int]
    budgets: list[int]
    seeds: int
    tuning_budget: int | None
    corpus: str
    tokenizer: str
    context_length: int
    train_tokens: int

    @property
    def text(self) -> str:
        """The corpus as a sentence names it."""
        return named_text(self.corpus)


class Seconds(Part):
    predicted: float
    measured: float


class Tuning(Part):
    learning_rate: float | None
    flagged: bool


class Rung(Part):
    architecture: str
    size: int
    reason: str | None
    non_embedding_active_parameters: int | None
    n_layer: int | None
    d_model: int | None
    tuning: Tuning | None


class Fit(Part):
    law: Law
    exponent: float
    objective: float
    promise: float
    points: int


class Interval(Part):
    low: float | None
    high: float | None


class HeldOut(Part):
    fitted: Fit
    forecasts: list[Forecast]
    error: float
    unchanged: float | None


class Finding(Part):
    architecture: str
    points: list[Point]
    fitted: Fit | None
    intervals: dict[str, Interval]
    held_out: HeldOut | None
    reason: str | None


class Cell(Part):
    outcome: str


class Ladder(Part):
    """A finished ladder."""

    format: int
    archbench_version: str
    git_revision: str | None
    command: str
    finished: datetime
    machine: dict[str, Any]
    plan: Plan
    seconds: Seconds
    rungs: list[Rung]
    findings: list[Finding]
    ranking: list[Ranking]
    unranked: str | None
    cells: list[Cell]

    @property
    def names(self) -> tuple[str, ...]:
        """Architectures that have points, in the order in which they were named."""
        return tuple(finding.architecture for finding in self.findings)


def is_ladder(folder: Path) -> bool:
    """Whether the folder holds a ladder, finished or not."""
    return (folder / SCALE).is_file() or (folder / PLAN).is_file()


def read_ladder(folder: Path) -> Ladder:
    """The outcome in a ladder's folder.

    Raises:
        StorageError: the ladder is unfinished, its file is damaged, or a newer archbench wrote it.
    """
    file = folder / SCALE
    if not file.is_file():
        cause = f"no ladder was finished there: it has a {PLAN} and no {SCALE}"
        raise StorageError(str(folder), cause, "Finish it with the archbench scale command that began it")
    again = "Repeat the archbench scale command: it writes the file anew from its finished runs"
    return checked(Ladder, file, FORMAT, again)
