"""``scale.json``, what ``archbench scale`` leaves: read, and checked field by field.

Quantities are in base units (tokens, FLOP, nats a token); errors are relative. A null is a quantity that is not known.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from archbench.errors import StorageError
from archbench.scaling.findings import Forecast, Point, Ranking
from archbench.scaling.law import Law
from archbench.scaling.plan import FORMAT, PLAN, SCALE


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Plan(_Part):
    architectures: list[str]
    sizes: list[int]
    budgets: list[int]
    seeds: int
    tuning_seeds: int
    factors: list[float]
    tuning_budget: int | None
    preset: str
    profile: str
    corpus: str
    tokenizer: str
    context_length: int
    train_tokens: int

    @property
    def text(self) -> str:
        """The corpus as a sentence names it: of a file or folder, its name without the way to it."""
        return self.corpus if self.corpus.startswith("hf:") else self.corpus.rstrip("/").rpartition("/")[2]


class Seconds(_Part):
    predicted: float
    measured: float


class Tuning(_Part):
    learning_rate: float | None
    flagged: bool
    note: str | None


class Rung(_Part):
    architecture: str
    size: int
    reason: str | None
    overrides: dict[str, Any]
    parameters: int | None
    non_embedding_active_parameters: int | None
    n_layer: int | None
    d_model: int | None
    tuning: Tuning | None


class Fit(_Part):
    law: Law
    exponent: float
    objective: float
    promise: float
    points: int


class Interval(_Part):
    low: float | None
    high: float | None


class HeldOut(_Part):
    fitted: Fit
    forecasts: list[Forecast]
    error: float
    unchanged: float | None


class Finding(_Part):
    architecture: str
    points: list[Point]
    fitted: Fit | None
    intervals: dict[str, Interval]
    held_out: HeldOut | None
    reason: str | None


class Cell(_Part):
    stage: str
    architecture: str
    tokens: int
    seed: int
    learning_rate: float
    outcome: str
    cause: str | None


class Ladder(_Part):
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
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(str(file), f"it is damaged ({' '.join(str(error).split())})", again) from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise StorageError(str(file), "it does not say which format it has", again)
    if content["format"] > FORMAT:
        cause = f"its format is {content['format']}, and this archbench reads formats up to {FORMAT}"
        raise StorageError(str(file), cause, "Install the newest archbench")
    try:
        return Ladder.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StorageError(str(file), f"the field {place} is wrong ({first['msg']})", again) from error
