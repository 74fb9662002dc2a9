"""``scale.json``: the outcome of ``archbench scale``. Losses are in nats per token; errors are relative."""

from __future__ import annotations

from typing import Any, ClassVar

from archbench.study.findings import Finding, Ranking
from archbench.study.learning_rates import Tuning
from archbench.study.outcome import Ended, Keyed, Outcome, Part, Seconds, named_text


class Plan(Part):
    """What a reader of the outcome has to know about the plan; ``train_tokens`` is the length of the training text."""

    architectures: list[str]
    sizes: list[int]
    budgets: list[int]
    seeds: int
    tuning_seeds: int
    factors: list[float]
    jobs: int
    tuning_budget: int | None
    profile: str
    preset: str
    corpus: str
    tokenizer: str
    context_length: int
    train_tokens: int

    @property
    def text(self) -> str:
        """Name of the corpus in a sentence."""
        return named_text(self.corpus)


class Model(Part):
    """One architecture at one size (``size`` is the requested one), or why it takes no part."""

    architecture: str
    size: int
    reason: str | None
    overrides: dict[str, Any]
    parameters: int | None
    non_embedding_active_parameters: int | None
    training_flops_per_token: float | None
    state_bytes: int | None
    n_layer: int | None
    d_model: int | None
    tuning: Tuning | None


class _Place(Part):
    stage: str
    architecture: str
    tokens: int | None
    seed: int
    learning_rate: float


class Cell(Ended, _Place, Keyed):
    """One run: its key, its place in the plan, and how it ended."""


class ScaleOutcome(Outcome):
    """A finished ladder."""

    file: ClassVar[str] = "scale.json"
    plan_file: ClassVar[str] = "scale-plan.json"
    noun: ClassVar[str] = "ladder"
    command_name: ClassVar[str] = "archbench scale"

    plan: Plan
    seconds: Seconds
    rungs: list[Model]
    findings: list[Finding]
    ranking: list[Ranking]
    unranked: str | None
    cells: list[Cell]

    @property
    def names(self) -> tuple[str, ...]:
        """Architectures that have points, in the order of the command."""
        return tuple(finding.architecture for finding in self.findings)
