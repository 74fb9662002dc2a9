"""The plan of a ladder: which architectures, at which sizes, on which budgets."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from archbench.config import Frozen, RunConfig
from archbench.errors import ConfigError
from archbench.study.folder import plan_digest


class ScalePlan(Frozen):
    """Everything that a ladder depends on. Plans of one :meth:`digest` continue the same folder."""

    architectures: tuple[str, ...] = Field(
        min_length=1, description="names; exponents are compared with those of the first"
    )
    sizes: tuple[PositiveInt, ...] = Field(
        min_length=1, description="N, non-embedding active parameters of every model, within 2 %"
    )
    budgets: tuple[PositiveInt, ...] = Field(min_length=1, description="D, training tokens, each on every size")
    seeds: int = Field(1, ge=1, le=100, description="seeds of each size and budget; their mean loss is one point")
    tuning_seeds: int = Field(2, ge=1, le=100, description="seeds of each learning rate tried")
    factors: tuple[PositiveFloat, ...] = Field(
        (0.5, 1.0, 2.0, 4.0),
        description="learning rates tried at each size, as multiples of the recipe's; one: no tuning",
    )
    jobs: int = Field(1, ge=1, le=1024, description="training runs at a time")
    run: RunConfig = Field(description="what all share: data, recipe, device; its budget is replaced")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, values in (
            ("architecture", self.architectures),
            ("size", self.sizes),
            ("budget", self.budgets),
        ):
            for value in values:
                if list(values).count(value) > 1:
                    raise ConfigError(f"{what} {value!r}", "it is named twice", f"Name each {what} once")
        if 1.0 not in self.factors:
            raise ConfigError("factors", "the recipe's own learning rate is not among them", "Let 1 be one of them")
        return self

    @property
    def tunes(self) -> bool:
        """Whether learning rates are searched for at all."""
        return len(self.factors) > 1

    @property
    def tuning_budget(self) -> int:
        """Tokens of a trial: the smallest budget, where the best rate is highest and a wrong one costs most."""
        return min(self.budgets)

    @property
    def tuning_share(self) -> float:
        """Share of :attr:`tuning_budget` that a trial trains on."""
        return 1.0

    def digest(self) -> str:
        """Eight hex digits that agree for plans that differ only in architectures, sizes, budgets and seeds."""
        values = self.model_dump(mode="json", exclude={"architectures", "sizes", "budgets", "seeds"})
        for name in ("architecture", "out", "time_limit"):
            del values["run"][name]
        for name in ("tokens", "steps", "flops", "seconds"):
            del values["run"]["training"][name]
        return plan_digest(values)

    def summary(self, context_length: int) -> dict[str, Any]:
        """What a reader of the outcome has to know about the plan, as plain values."""
        names = {"architectures", "sizes", "budgets", "seeds", "tuning_seeds", "factors", "jobs"}
        return {
            **self.model_dump(mode="json", include=names),
            "tuning_budget": self.tuning_budget if self.tunes else None,
            "profile": self.run.profile,
            "preset": self.run.preset,
            "corpus": self.run.data.corpus,
            "tokenizer": self.run.data.tokenizer,
            "context_length": context_length,
        }
