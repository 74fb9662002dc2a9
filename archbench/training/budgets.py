"""Budgets: the amount of training, in updates, tokens, FLOPs or seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archbench.config import BUDGETS, BudgetUnit
from archbench.errors import ConfigError

if TYPE_CHECKING:
    from archbench.config import TrainingConfig


@dataclass(frozen=True)
class Spent:
    """Updates, tokens and seconds of training steps so far."""

    steps: float = 0
    tokens: float = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Budget:
    """An amount of training.

    The update that reaches the amount is the last, so a budget is exceeded by less than one update. On a GPU, where
    times are read every few updates, a budget in seconds is exceeded by less than that interval.

    Attributes:
        unit: steps (updates), tokens, flops (model FLOPs, forward and backward) or seconds (of training steps).
        amount: how many.
        flops_per_token: model FLOPs of training on one token.
    """

    unit: BudgetUnit
    amount: float
    flops_per_token: float = 0.0

    @classmethod
    def from_config(cls, config: TrainingConfig, flops_per_token: float) -> Budget:
        """The budget that the recipe sets.

        Raises:
            ConfigError: the budget is in FLOPs, but the model's FLOPs are unknown.
        """
        unit = next(name for name in BUDGETS if getattr(config, name) is not None)
        if unit == "flops" and not (math.isfinite(flops_per_token) and flops_per_token > 0):
            raise ConfigError(
                "training.flops",
                "this model's FLOPs per token are not known",
                "Set the budget in tokens, steps or seconds",
            )
        return cls(unit, getattr(config, unit), flops_per_token)

    def progress(self, spent: Spent) -> float:
        """The share spent, in [0, 1]; training ends at 1."""
        amount = {
            "steps": spent.steps,
            "tokens": spent.tokens,
            "flops": spent.tokens * self.flops_per_token,
            "seconds": spent.seconds,
        }[self.unit]
        return min(1.0, amount / self.amount)
