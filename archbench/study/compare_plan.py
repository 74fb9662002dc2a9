"""The plan of a comparison: architectures, matching, budget, trials and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from archbench.bounds import Factor, Size
from archbench.config import Frozen, RunConfig
from archbench.errors import ConfigError, did_you_mean
from archbench.study.learning_rates import FACTORS, TUNING_SEEDS
from archbench.study.records import named_once, plan_digest
from archbench.study.task_accuracy import TaskPlan
from archbench.study.verdicts import MARGIN

MatchName = Literal["flops", "params", "tokens", "time", "state"]

MATCHES: dict[MatchName, str] = {
    "flops": "equal non-embedding active parameters (within 2 %) and equal training FLOPs",
    "params": "equal non-embedding active parameters (within 2 %) and equal training tokens",
    "tokens": "the presets as they are, and equal training tokens",
    "time": "the presets as they are, and equal seconds of training on this machine",
    "state": "equal bytes of decoding state at the trained context (within 2 %) and equal training tokens",
}
"""What each way of matching makes equal."""


class ComparePlan(Frozen):
    """Everything that a comparison depends on. Plans with the same :meth:`digest` can share a folder."""

    architectures: tuple[str, ...] = Field(min_length=1, max_length=1000, description="names, including the baseline's")
    baseline: str = Field(description="the architecture that the others are compared with")
    match: MatchName = Field("flops", description="what is made equal for all")
    seeds: int = Field(5, ge=2, le=500, description="fresh seeds at the chosen learning rates; a verdict needs 3")
    tuning_seeds: int = Field(TUNING_SEEDS, ge=1, le=100, description="seeds at each learning rate tried")
    tuning_share: float = Field(0.25, gt=0, le=1, description="budget of a trial, as a share of the whole budget")
    factors: tuple[Factor, ...] = Field(
        FACTORS,
        max_length=100,
        description="learning rates tried, as multiples of the recipe's; a single one means no tuning",
    )
    margin: float = Field(MARGIN, gt=0, lt=1, description="smallest difference that counts, relative to the baseline")
    sweeps: int = Field(4, ge=0, le=100, description="rounds in which all take turns for speed and memory; 0 for none")
    cost_multiples: tuple[Size, ...] = Field(
        (1, 4, 16),
        max_length=100,
        description="context lengths of the cost curves, as multiples of the trained context",
    )
    evaluation: TaskPlan | None = Field(None, description="downstream tasks that every fresh seed is asked")
    jobs: int = Field(1, ge=1, le=1024, description="training runs at a time; they share the threads equally")
    run: RunConfig = Field(description="configuration that all runs share; its architecture is the baseline")

    @model_serializer(mode="wrap")
    def _as_before(self, written: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """A plan without tasks is written as before there were any."""
        return {name: one for name, one in written(self).items() if one is not None or name != "evaluation"}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named_once(architecture=self.architectures, factor=self.factors, context_multiple=self.cost_multiples)
        if self.baseline not in self.architectures:
            step = did_you_mean(self.baseline, self.architectures)
            raise ConfigError(f"baseline {self.baseline!r}", "it is not among those compared", step)
        if 1.0 not in self.factors:
            raise ConfigError("factors", "the recipe's own learning rate is not among them", "Let 1 be one of them")
        self._check_budget()
        return self

    def _check_budget(self) -> None:
        training = self.run.training
        if training.seconds is not None and self.match != "time":
            cause = f"a budget in seconds does not give equal {'FLOPs' if self.match == 'flops' else 'tokens'}"
            raise ConfigError("training.seconds", cause, "Use --match time, or give the budget in tokens")
        if training.flops is not None and self.match not in ("flops", "time"):
            cause = f"--match {self.match} trains all on equally many tokens"
            raise ConfigError("training.flops", cause, "Give the budget in tokens, or use --match flops")
        if self.match == "time" and self.jobs > 1:
            raise ConfigError("jobs", "runs at the same time slow each other down", "Leave --jobs out, or give 1")

    @property
    def tunes(self) -> bool:
        """Whether learning rates are searched for."""
        return len(self.factors) > 1

    def digest(self, architectures: Sequence[str] | None = None) -> str:
        """Eight hex digits; plans that differ only in seeds, margin, sweeps, contexts and tasks have the same.

        Args:
            architectures: those of an earlier plan, to test whether this plan only adds to them.
        """
        values = self.model_dump(mode="json", exclude={"seeds", "margin", "sweeps", "cost_multiples", "evaluation"})
        values["architectures"] = list(self.architectures if architectures is None else architectures)
        for name in ("out", "time_limit"):
            del values["run"][name]
        return plan_digest(values)
