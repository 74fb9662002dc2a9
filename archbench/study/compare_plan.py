"""The plan of a comparison: which architectures, matched on what, on which budget, with how many trials and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from archbench.config import Frozen, RunConfig
from archbench.errors import ConfigError, did_you_mean
from archbench.study.folder import plan_digest
from archbench.study.learning_rates import FACTORS, TUNING_SEEDS
from archbench.study.verdicts import CONFIDENCE, MARGIN

MatchName = Literal["flops", "params", "tokens", "time", "state"]

MATCHES: dict[MatchName, str] = {
    "flops": "equal non-embedding active parameters (within 2 %) and equal training FLOPs",
    "params": "equal non-embedding active parameters (within 2 %) and equal training tokens",
    "tokens": "the presets as they are, and equal training tokens",
    "time": "the presets as they are, and equal seconds of training on this machine",
    "state": "equal bytes of decoding state at the trained context (within 2 %) and equal training tokens",
}
"""What each way of matching holds equal."""


class ComparePlan(Frozen):
    """Everything that a comparison depends on. Plans of one :meth:`digest` continue the same folder."""

    architectures: tuple[str, ...] = Field(min_length=1, description="names, the baseline among them")
    baseline: str = Field(description="the architecture that the others are compared with")
    match: MatchName = Field("flops", description="what is equal for all")
    seeds: int = Field(5, ge=2, le=500, description="fresh seeds at the chosen learning rates; a verdict takes 3")
    tuning_seeds: int = Field(TUNING_SEEDS, ge=1, le=100, description="seeds of each learning rate tried")
    tuning_share: float = Field(0.25, gt=0, le=1, description="budget of a trial, as a share of a whole run")
    factors: tuple[PositiveFloat, ...] = Field(
        FACTORS, description="learning rates tried, as multiples of the recipe's; one: no tuning"
    )
    margin: float = Field(MARGIN, gt=0, lt=1, description="smallest difference that counts, relative to the baseline")
    sweeps: int = Field(
        4, ge=0, le=100, description="rounds in which speed and memory are measured in turns; 0 for none"
    )
    cost_multiples: tuple[PositiveInt, ...] = Field(
        (1, 4, 16),
        description="context lengths of the cost curves, as multiples of the trained one; none for no curves",
    )
    jobs: int = Field(1, ge=1, le=1024, description="training runs at a time, with equal shares of the threads")
    run: RunConfig = Field(description="what all share: data, recipe, budget, device; its architecture is the baseline")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.architectures:
            if self.architectures.count(name) > 1:
                raise ConfigError(f"architecture {name!r}", "it is named twice", "Name each architecture once")
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
            cause = f"a budget in seconds is not equal {'FLOPs' if self.match == 'flops' else 'tokens'}"
            raise ConfigError("training.seconds", cause, "Use --match time, or give the budget in tokens")
        if training.flops is not None and self.match not in ("flops", "time"):
            cause = f"--match {self.match} trains all on equal tokens"
            raise ConfigError("training.flops", cause, "Give the budget in tokens, or use --match flops")
        if self.match == "time" and self.jobs > 1:
            raise ConfigError("jobs", "runs beside each other take each other's time", "Leave --jobs out, or give 1")

    @property
    def tunes(self) -> bool:
        """Whether learning rates are searched for at all."""
        return len(self.factors) > 1

    def digest(self, architectures: Sequence[str] | None = None) -> str:
        """Eight hex digits that agree for plans that differ only in how much is measured: seeds, sweeps, contexts.

        Args:
            architectures: those of an earlier plan, to ask whether this one only adds some.
        """
        values = self.model_dump(mode="json", exclude={"seeds", "margin", "sweeps", "cost_multiples"})
        values["architectures"] = list(self.architectures if architectures is None else architectures)
        for name in ("out", "time_limit"):
            del values["run"][name]
        return plan_digest(values)

    def summary(self, context_length: int, budget: dict[str, Any]) -> dict[str, Any]:
        """What a reader of the outcome has to know about the plan, as plain values."""
        unit, amount = next(iter(budget.items()))
        return {
            **self.model_dump(
                mode="json",
                include={
                    "architectures", "baseline", "match", "seeds", "tuning_seeds", "tuning_share", "factors", "margin",
                    "sweeps", "jobs",
                },
            ),
            "profile": self.run.profile,
            "preset": self.run.preset,
            "corpus": self.run.data.corpus,
            "tokenizer": self.run.data.tokenizer,
            "context_length": context_length,
            "confidence": CONFIDENCE,
            "budget": {"unit": unit, "amount": amount},
            "matched_on": MATCHES[self.match],
        }  # fmt: skip
