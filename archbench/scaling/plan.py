"""The plan of a scaling ladder: who, at which sizes, on which budgets. Frozen, and kept."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from archbench.config import Frozen, RunConfig
from archbench.errors import ConfigError

PLAN, SCALE = "scale-plan.json", "scale.json"
"""Files of a ladder's folder, beside the rows."""

FORMAT = 1
"""Of ``scale.json``; raised when a field changes its meaning."""


class ScalePlan(Frozen):
    """Everything a ladder depends on; plans of one :meth:`digest` continue the same folder."""

    architectures: tuple[str, ...] = Field(min_length=1, description="names; exponents are compared with the first's")
    sizes: tuple[PositiveInt, ...] = Field(
        min_length=1, description="N, non-embedding active parameters that all are given, within 2 %"
    )
    budgets: tuple[PositiveInt, ...] = Field(min_length=1, description="D, training tokens")
    seeds: int = Field(1, ge=1, le=100, description="of each size and budget; their mean loss is one point")
    tuning_seeds: int = Field(2, ge=1, le=100, description="seeds of each learning rate that is tried")
    factors: tuple[PositiveFloat, ...] = Field(
        (0.5, 1.0, 2.0, 4.0), description="learning rates tried at each size, times the recipe's; one: no tuning"
    )
    jobs: int = Field(1, ge=1, le=1024, description="training runs at a time")
    run: RunConfig = Field(description="what all share: data, recipe, device; its budget is replaced by each of these")

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
        """Tokens of a trial: the smallest budget, at which the best rate is highest and a wrong one costs most."""
        return min(self.budgets)

    @property
    def tuning_share(self) -> float:
        """Of :attr:`tuning_budget`, that a trial trains on."""
        return 1.0

    def digest(self) -> str:
        """Eight hex digits that agree for plans that differ only in who, sizes, budgets and seeds."""
        values = self.model_dump(mode="json", exclude={"architectures", "sizes", "budgets", "seeds"})
        for name in ("architecture", "out", "time_limit"):
            del values["run"][name]
        for name in ("tokens", "steps", "flops", "seconds"):
            del values["run"]["training"][name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]

    def summary(self, context_length: int) -> dict[str, Any]:
        """What a reader of the outcome has to know of the plan, as plain values."""
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
