"""``comparison.json``, what ``archbench compare`` leaves: read, and checked field by field.

Quantities are in base units (seconds, bytes, tokens, FLOP, bit/byte); ratios and differences are relative to the
baseline. A null is a quantity that is not known.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from archbench.compare.costs import CostRow
from archbench.compare.plan import COMPARISON, FORMAT, PLAN
from archbench.compare.verdicts import QualityRow
from archbench.errors import StorageError

M = TypeVar("M", bound=BaseModel)


class Part(BaseModel):
    """A part of an outcome; fields that are not known are for others to read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Budget(Part):
    unit: Literal["flops", "tokens", "seconds"]
    amount: float


class Plan(Part):
    architectures: list[str]
    baseline: str
    match: str
    matched_on: str | None = None
    profile: str
    preset: str
    seeds: int
    tuning_seeds: int
    tuning_share: float
    factors: list[float] = []
    margin: float
    confidence: float
    corpus: str
    tokenizer: str
    context_length: int
    budget: Budget


class Seconds(Part):
    predicted: float
    measured: float


class Model(Part):
    architecture: str
    matched: bool
    reason: str | None
    overrides: dict[str, Any]
    parameters: int | None
    active_parameters: int | None
    non_embedding_active_parameters: int | None
    training_flops_per_token: float | None
    state_bytes: int | None
    deviation: float | None


class Cell(Part):
    key: str
    stage: str
    architecture: str
    seed: int
    learning_rate: float | None
    factor: float | None
    block: int | None = None
    context_length: int
    run_id: str | None
    outcome: Literal["ok", "diverged", "failed"]
    cause: str | None
    seconds: float


class TuningPoint(Part):
    learning_rate: float
    factor: float
    bits_per_byte: list[float | None]
    mean: float | None


class Tuning(Part):
    architecture: str
    learning_rate: float | None
    flagged: bool
    note: str | None
    points: list[TuningPoint]


class Units(Part):
    kind: Literal["documents", "blocks"]
    count: int
    empty: int


class Spent(Part):
    architecture: str
    training_tokens: float | None
    training_flops: float | None
    training_seconds: float | None


class Curve(Part):
    architecture: str
    context_length: int
    prefill_seconds: float | None
    seconds_per_token: float | None
    state_bytes: float | None
    peak_memory_bytes: float | None
    cause: str | None


class Position(Part):
    architecture: str
    context_length: int
    multiple: int
    position: int
    loss: float | None
    cause: str | None


class Look(Part):
    """A time that the verdict was read."""

    seeds: int
    margin: float


class Outcome(Part):
    """A finished comparison."""

    format: int
    archbench_version: str
    git_revision: str | None
    command: str
    finished: datetime
    machine: dict[str, Any]
    plan: Plan
    seconds: Seconds
    models: list[Model]
    cells: list[Cell]
    tuning: list[Tuning]
    quality: list[QualityRow]
    units: Units
    spent: list[Spent]
    costs: list[CostRow]
    curves: list[Curve]
    positions: list[Position]
    looks: list[Look] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Architectures that took part, the baseline first."""
        matched = {model.architecture for model in self.models if model.matched}
        others = [name for name in self.plan.architectures if name in matched and name != self.plan.baseline]
        return (self.plan.baseline, *others)

    @property
    def corpus(self) -> str:
        """The corpus as a sentence names it."""
        return named_text(self.plan.corpus)


def is_comparison(folder: Path) -> bool:
    """Whether the folder holds a comparison, finished or not."""
    return (folder / COMPARISON).is_file() or (folder / PLAN).is_file()


def read_outcome(folder: Path) -> Outcome:
    """The outcome in a comparison's folder.

    Raises:
        StorageError: the comparison is unfinished, its file is damaged, or a newer archbench wrote it.
    """
    file = folder / COMPARISON
    if not file.is_file():
        cause = f"no comparison was finished there: it has a {PLAN} and no {COMPARISON}"
        step = (
            f"Finish it with the archbench compare command that began it, or show its runs: {folder}/runs/*/*.parquet"
        )
        raise StorageError(str(folder), cause, step)
    again = "Repeat the archbench compare command: it writes the file anew from its finished runs"
    outcome = checked(Outcome, file, FORMAT, again)
    if not any(row.architecture == outcome.plan.baseline for row in outcome.quality):
        raise StorageError(str(file), f"the baseline {outcome.plan.baseline!r} has no quality in it", again)
    return outcome


def checked(kind: type[M], file: Path, newest: int, again: str) -> M:
    """An outcome's file, field by field.

    Args:
        kind: what it has to be.
        newest: format that can be read.
        again: how the user has it written anew.

    Raises:
        StorageError: it is damaged, or a newer archbench wrote it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(str(file), f"it is damaged ({' '.join(str(error).split())})", again) from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise StorageError(str(file), "it does not say which format it has", again)
    if content["format"] > newest:
        cause = f"its format is {content['format']}, and this archbench reads formats up to {newest}"
        raise StorageError(str(file), cause, "Install the newest archbench")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StorageError(str(file), f"the field {place} is wrong ({first['msg']})", again) from error


def named_text(corpus: str) -> str:
    """A corpus as a sentence names it: of a file or folder, its name without the way to it."""
    return corpus if corpus.startswith("hf:") else corpus.rstrip("/").rpartition("/")[2]
