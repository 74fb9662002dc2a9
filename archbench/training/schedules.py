"""Learning-rate schedules, as functions of the spent share of the budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archbench.config import TrainingConfig


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """The learning rate when ``progress`` in [0, 1] of the budget is spent, in any unit.

    - Linear warm-up from 0 to the peak over ``warmup_fraction``; then
    - ``cosine``: half a cosine down to ``min_lr_ratio`` × peak (Loshchilov & Hutter 2017, "SGDR", without restarts);
    - ``wsd``: warm-up, stable, decay: the peak until the last ``decay_fraction``, then linearly down to
      ``min_lr_ratio`` × peak (Hu et al. 2024, "MiniCPM", section 4; linear as in Hägele et al. 2024). If they
      overlap, the decay starts at the end of the warm-up;
    - ``constant``: the peak.
    """
    peak, lowest = config.learning_rate, config.learning_rate * config.min_lr_ratio
    warmup = config.warmup_fraction
    if progress < warmup:
        return peak * progress / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "cosine":
        spent = (progress - warmup) / (1.0 - warmup)
        return lowest + (peak - lowest) * 0.5 * (1.0 + math.cos(math.pi * spent))
    decay_start = max(warmup, 1.0 - config.decay_fraction)
    if progress <= decay_start:
        return peak
    return lowest + (peak - lowest) * (1.0 - progress) / (1.0 - decay_start)
