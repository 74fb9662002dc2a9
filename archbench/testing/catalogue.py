"""Every check, in the order they are run: what the others need first, what is dear last."""

from __future__ import annotations

from archbench.testing import (
    causality,
    costs,
    decoding,
    generation,
    interface,
    learning,
    numerics,
    side_effects,
    state,
    tensors,
)
from archbench.testing.checks import Check

CHECKS: tuple[Check, ...] = (
    interface.HOOKS,
    interface.LOGITS,
    learning.INITIAL_LOSS,
    causality.CAUSALITY,
    causality.BATCH_INVARIANCE,
    generation.GENERATE,
    decoding.CACHED_DECODE,
    state.STATE_BYTES,
    learning.TRAIN_STEP,
    side_effects.SIDE_EFFECTS,
    costs.FLOPS,
    learning.GRADIENTS,
    numerics.SEED,
    tensors.SAVE_LOAD,
    tensors.META,
    interface.TOO_LONG,
    numerics.BFLOAT16,
    learning.OVERFIT,
    numerics.COMPILE,
)

GATE: tuple[Check, ...] = tuple(check for check in CHECKS if check.gate)
"""What a model has to pass before ``archbench run`` measures it."""
