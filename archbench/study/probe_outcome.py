"""``probe.json``: the outcome of ``archbench probe``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from archbench.study.outcome import Outcome, Part, Record, Seconds
from archbench.study.probe_plan import ProbePlan

Verdict = Literal["solved", "partly learned", "not learned under this budget", "not measured"]


class Task(Part):
    """A task of the probe; ``updates`` is the budget of one training."""

    name: str
    summary: str
    source: str
    conditions: list[str]
    vocab_size: int
    context_length: int
    updates: int
    batch_size: int


class ModelSize(Part):
    """The fields of :class:`archbench.measure.sizes.Size`, whose module imports torch."""

    parameters: int
    active_parameters: int
    non_embedding_active_parameters: int
    forward_flops_per_token: float
    training_flops_per_token: float
    state_bytes: int | None


class Model(Part):
    """A probed architecture with its size for each task, or why it takes no part."""

    architecture: str
    reason: str | None
    overrides: dict[str, Any]
    sizes: dict[str, ModelSize]


class Score(Part):
    """One architecture on one condition of one task.

    Attributes:
        values: accuracy on the test examples, one per seed; 0 for a seed that diverged.
        mean, low, high: mean and range of the values; None without values.
        learning_rate: the one whose seeds answered most validation examples; None if all trials failed.
        updates: of the longest of these trainings.
        cpu_seconds: mean of these trainings; None without trainings.
        state_bytes: what decoding keeps of one sequence of the task's longest example; None without a cache.
    """

    architecture: str
    task: str
    condition: str
    chance: float
    verdict: Verdict
    values: tuple[float, ...]
    mean: float | None
    low: float | None
    high: float | None
    learning_rate: float | None
    updates: int
    cpu_seconds: float | None
    state_bytes: int | None


class TrialRecord(Record):
    """How a trial ended.

    Attributes:
        cpu_seconds: of all threads; in a pilot, the prediction for one whole trial.
        updates: made; fewer than the budget if the training ended early.
        malloc: setting of the memory allocator.
        validation, test: condition -> accuracy.
    """

    cpu_seconds: float = 0.0
    updates: int = 0
    malloc: str | None = None
    validation: dict[str, float] = Field(default_factory=dict)
    test: dict[str, float] = Field(default_factory=dict)


class _Place(Part):
    architecture: str
    task: str
    learning_rate: float
    seed: int


class Trial(TrialRecord, _Place):
    """One training: its place in the plan, then its record."""


class ProbeOutcome(Outcome):
    """A finished probe."""

    file: ClassVar[str] = "probe.json"
    plan_file: ClassVar[str] = "probe-plan.json"
    noun: ClassVar[str] = "probe"
    command_name: ClassVar[str] = "archbench probe"

    plan: ProbePlan
    seconds: Seconds
    tasks: list[Task]
    models: list[Model]
    scores: list[Score]
    trials: list[Trial]

    @property
    def names(self) -> tuple[str, ...]:
        """Architectures that took part."""
        return tuple(model.architecture for model in self.models if model.reason is None)
