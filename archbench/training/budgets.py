"""Budgets: how much training is enough, in updates, tokens, FLOPs or seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from archbench.errors import ConfigError

if TYPE_CHECKING:
    from archbench.config import TrainingConfig


@dataclass(frozen=True)
class Spent:
    """What training has used so far: updates, tokens, and seconds of training steps."""

    steps: float = 0
    tokens: float = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Budget:
    """An amount of training.

    The update that reaches the amount is the last, so a budget is overspent by less than one update (on a GPU, where
    times are read a few updates late, a budget in seconds by less than that interval).

    Attributes:
        unit: steps (updates), tokens, flops (model FLOPs, forward and backward) or seconds (of training steps).
        amount: how many.
        flops_per_token: model FLOPs of training on one token.
    """

    unit: Literal["steps", "tokens", "flops", "seconds"]
    amount: float
    flops_per_token: float = 0.0

    @classmethod
    def from_config(cls, config: TrainingConfig, flops_per_token: float) -> Budget:
        """The one budget that the recipe sets.

        Raises:
            ConfigError: a budget in FLOPs for a model whose FLOPs are not known.
        """
        if config.flops is not None:
            if not (math.isfinite(flops_per_token) and flops_per_token > 0):
                raise ConfigError(
                    "training.flops",
                    "this model's FLOPs per token are not known",
                    "Set the budget in tokens, steps or seconds",
                )
            return cls("flops", config.flops, flops_per_token)
        if config.tokens is not None:
            return cls("tokens", config.tokens, flops_per_token)
        if config.steps is not None:
            return cls("steps", config.steps, flops_per_token)
        assert config.seconds is not None
        return cls("seconds", config.seconds, flops_per_token)

    def progress(self, spent: Spent) -> float:
        """The share that is spent, in [0, 1]; training ends at 1."""
        amount = {
            "steps": spent.steps,
            "tokens": spent.tokens,
            "flops": spent.tokens * self.flops_per_token,
            "seconds": spent.seconds,
        }[self.unit]
        return min(1.0, amount / self.amount)
