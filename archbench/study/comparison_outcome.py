"""``comparison.json`` and ``tuning.json``: the outcomes of ``archbench compare`` and ``archbench tune``.

Ratios and differences are relative to the baseline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from archbench.errors import StorageError
from archbench.study.costs import CostCurve, CostRow, Position
from archbench.study.learning_rates import Tuning
from archbench.study.outcome import Ended, Keyed, Outcome, Part, Seconds, named_text
from archbench.study.task_accuracy import AccuracyRow
from archbench.study.verdicts import QualityRow


class Budget(Part):
    """Budget of one training run."""

    unit: Literal["flops", "tokens", "seconds"]
    amount: float


class Plan(Part):
    """What a reader of the outcome has to know about the plan."""

    architectures: list[str]
    baseline: str
    match: str
    seeds: int
    tuning_seeds: int
    tuning_share: float
    factors: tuple[float, ...] = ()
    margin: float
    sweeps: int | None = None
    jobs: int | None = None
    profile: str
    preset: str
    corpus: str
    tokenizer: str
    context_length: int
    confidence: float
    budget: Budget
    matched_on: str | None = None


class Model(Part):
    """An architecture at its matched size, or why it takes no part."""

    architecture: str
    matched: bool
    reason: str | None
    overrides: dict[str, Any]
    parameters: int | None
    active_parameters: int | None
    non_embedding_active_parameters: int | None
    training_flops_per_token: float | None
    forward_flops_per_token: float | None = None
    state_bytes: int | None
    deviation: float | None


class _Place(Part):
    stage: str
    architecture: str
    seed: int
    learning_rate: float | None
    factor: float | None
    block: int | None = None
    repeated: bool = False
    context_length: int


class Cell(Ended, _Place, Keyed):
    """One run of the comparison: its key, its place in the plan, and how it ended.

    Attributes:
        host: where a launcher had it measured; absent for the machine of the study.
        attempts: how earlier attempts on it ended; absent if there was none.
    """

    host: str | None = None
    attempts: tuple[str, ...] = ()


class Units(Part):
    """The units that the text was resampled by; ``empty`` documents are left out."""

    kind: Literal["documents", "blocks"]
    count: int
    empty: int


class Spent(Part):
    """What training took: medians over fresh seeds."""

    architecture: str
    training_tokens: float | None
    training_flops: float | None
    training_seconds: float | None


class Analysis(Part):
    """An interim or final analysis: the number of seeds and the margin of the verdict."""

    seeds: int
    margin: float


class TuningOutcome(Outcome):
    """The searches for learning rates alone."""

    file: ClassVar[str] = "tuning.json"
    plan_file: ClassVar[str] = "plan.json"
    noun: ClassVar[str] = "search for learning rates"
    command_name: ClassVar[str] = "archbench tune"

    plan: Plan
    seconds: Seconds
    models: list[Model]
    cells: list[Cell]
    tuning: list[Tuning]

    @property
    def names(self) -> tuple[str, ...]:
        """Architectures that took part, the baseline first."""
        matched = {model.architecture for model in self.models if model.matched}
        others = [name for name in self.plan.architectures if name in matched and name != self.plan.baseline]
        return (self.plan.baseline, *others)

    @property
    def corpus(self) -> str:
        """Name of the corpus in a sentence."""
        return named_text(self.plan.corpus)


class ComparisonOutcome(TuningOutcome):
    """A finished comparison.

    Attributes:
        withheld: why there is no verdict on speed; absent where there is one.
    """

    file: ClassVar[str] = "comparison.json"
    noun: ClassVar[str] = "comparison"
    command_name: ClassVar[str] = "archbench compare"

    quality: list[QualityRow]
    units: Units
    spent: list[Spent]
    costs: list[CostRow]
    curves: list[CostCurve]
    positions: list[Position]
    accuracy: list[AccuracyRow] = Field(default_factory=list)
    looks: list[Analysis] = Field(default_factory=list)
    conclusion: str | None = None
    withheld: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """As :meth:`Outcome.read`; the quality of the baseline must be there, too."""
        outcome = super().read(folder)
        if not any(row.architecture == outcome.plan.baseline for row in outcome.quality):
            cause = f"the baseline {outcome.plan.baseline!r} has no quality in it"
            raise StorageError(str(folder / cls.file), cause, cls.again())
        return outcome
