"""The plan of a ladder: architectures, sizes and budgets."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from archbench.bounds import Factor, Parameters, Tokens
from archbench.config import Frozen, RunConfig
from archbench.errors import ConfigError
from archbench.study.records import named_once, plan_digest


class ScalePlan(Frozen):
    """Everything that a ladder depends on. Plans with the same :meth:`digest` can share a folder."""

    architectures: tuple[str, ...] = Field(
        min_length=1,
        max_length=1000,
        description="names of the architectures; exponents are compared with the first one's",
    )
    sizes: tuple[Parameters, ...] = Field(
        min_length=1, max_length=100, description="N, non-embedding active parameters of the models, within 2 %"
    )
    budgets: tuple[Tokens, ...] = Field(
        min_length=1, max_length=100, description="D, training tokens; every size trains on each"
    )
    seeds: int = Field(1, ge=1, le=100, description="seeds for each size and budget; their mean loss is one point")
    tuning_seeds: int = Field(2, ge=1, le=100, description="seeds at each learning rate tried")
    factors: tuple[Factor, ...] = Field(
        (0.5, 1.0, 2.0, 4.0),
        max_length=100,
        description="learning rates tried at each size, as multiples of the recipe's; a single one means no tuning",
    )
    jobs: int = Field(1, ge=1, le=1024, description="training runs at a time")
    run: RunConfig = Field(description="configuration that all runs share; its budget is replaced")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named_once(architecture=self.architectures, size=self.sizes, budget=self.budgets, factor=self.factors)
        if 1.0 not in self.factors:
            raise ConfigError("factors", "the recipe's own learning rate is not among them", "Let 1 be one of them")
        return self

    @property
    def tunes(self) -> bool:
        """Whether learning rates are searched for."""
        return len(self.factors) > 1

    @property
    def tuning_budget(self) -> int:
        """Tokens of a trial: the smallest budget, at which the best rate is highest and a wrong one costs most."""
        return min(self.budgets)

    @property
    def tuning_share(self) -> float:
        """Share of :attr:`tuning_budget` in a trial."""
        return 1.0

    def digest(self) -> str:
        """Eight hex digits; plans that differ only in architectures, sizes, budgets and seeds have the same."""
        values = self.model_dump(mode="json", exclude={"architectures", "sizes", "budgets", "seeds"})
        for name in ("architecture", "out", "time_limit"):
            del values["run"][name]
        for name in ("tokens", "steps", "flops", "seconds"):
            del values["run"]["training"][name]
        return plan_digest(values)
