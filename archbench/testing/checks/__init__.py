"""Every check, in the order they run: first what the others need, most expensive last."""

from __future__ import annotations

from archbench.testing.checks.bfloat16 import check_bfloat16
from archbench.testing.checks.cached_decode import check_cached_decode
from archbench.testing.checks.causality import check_batch_invariance, check_causality
from archbench.testing.checks.compile import check_compile
from archbench.testing.checks.flops import check_flops
from archbench.testing.checks.generate import check_generate
from archbench.testing.checks.hooks import check_hooks
from archbench.testing.checks.learning import check_gradients, check_initial_loss, check_overfit
from archbench.testing.checks.logits import check_logits
from archbench.testing.checks.meta import check_meta
from archbench.testing.checks.save_load import check_save_load
from archbench.testing.checks.seed import check_seed
from archbench.testing.checks.side_effects import check_side_effects
from archbench.testing.checks.state_bytes import check_state_bytes
from archbench.testing.checks.too_long import check_too_long
from archbench.testing.checks.train_step import check_train_step
from archbench.testing.evaluation import Check

CHECKS: tuple[Check, ...] = (
    check_hooks,
    check_logits,
    check_initial_loss,
    check_causality,
    check_batch_invariance,
    check_generate,
    check_cached_decode,
    check_state_bytes,
    check_train_step,
    check_side_effects,
    check_flops,
    check_gradients,
    check_seed,
    check_save_load,
    check_meta,
    check_too_long,
    check_bfloat16,
    check_overfit,
    check_compile,
)

GATE: tuple[Check, ...] = tuple(check for check in CHECKS if check.gate)
"""What a model has to pass before ``archbench run`` measures it."""
