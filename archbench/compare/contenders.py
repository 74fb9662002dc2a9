"""Who takes part, and at which size: each architecture loaded, matched to the baseline, or left out with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archbench.compare.cells import source_digest
from archbench.compare.matching import match
from archbench.compare.plan import TOLERANCE, ComparePlan
from archbench.compare.shapes import Quantity
from archbench.compare.stages import Contender
from archbench.config import ModelConfig, RunConfig
from archbench.data.dataset import prepare
from archbench.errors import ArchbenchError, UnknownNameError, UsageError
from archbench.measure.sizes import Size, size_of
from archbench.plugin.architecture import Architecture
from archbench.plugin.registry import load

QUANTITIES: dict[str, Quantity | None] = {
    "flops": "non_embedding_active_parameters",
    "params": "non_embedding_active_parameters",
    "state": "state_bytes",
    "tokens": None,
    "time": None,
}
"""What each way of matching makes equal by a search of sizes."""


def contenders(plan: ComparePlan) -> list[Contender]:
    """Every architecture of the plan, in its order; the baseline at its preset's own size.

    Raises:
        UnknownNameError: there is no architecture of one of the names, or it has no such preset.
        ArchbenchError: the baseline cannot be loaded or built; the others are left out with the reason.
    """
    baseline = load(plan.baseline, plan.run.plugins)
    fixed = shared_fields(plan.run, baseline)
    reference = _built(baseline, baseline.config(plan.run.preset, **fixed))
    quantity = QUANTITIES[plan.match]
    if quantity == "state_bytes" and reference.state_bytes is None:
        cause = "it decodes without a cache, so there is no state to match"
        raise UsageError(f"baseline {plan.baseline}", cause, "Take another --baseline, or match something else")
    return [_contender(plan, name, fixed, reference, quantity) for name in plan.architectures]


def _contender(
    plan: ComparePlan, name: str, fixed: Mapping[str, Any], reference: Size, quantity: Quantity | None
) -> Contender:
    if quantity is not None and name != plan.baseline:
        return matched(plan.run, name, fixed, getattr(reference, quantity), quantity)
    length = int(fixed["context_length"])
    source = ""
    try:
        architecture = load(name, plan.run.plugins)
        source = source_digest(architecture)
        size = _built(architecture, architecture.config(plan.run.preset, **fixed))
    except UnknownNameError:
        raise
    except ArchbenchError as error:
        if name == plan.baseline:
            raise
        return _left_out(name, fixed, error, source)
    return Contender(name, fixed, length, size, None if quantity is None else 0.0, True, None, source)


def matched(
    run: RunConfig,
    name: str,
    fixed: Mapping[str, Any],
    target: float,
    quantity: Quantity = "non_embedding_active_parameters",
) -> Contender:
    """An architecture at the size at which it has ``target`` of ``quantity``, or left out with the reason.

    Args:
        run: whose preset the search begins at.
        fixed: as of :func:`shared_fields`.

    Raises:
        UnknownNameError: there is no architecture of that name, or it has no such preset.
    """
    source = ""
    try:
        architecture = load(name, run.plugins)
        source = source_digest(architecture)
        found = match(architecture, run.preset, fixed, target, quantity, tolerance=TOLERANCE)
    except UnknownNameError:  # most likely a slip of the pen, which should not cost the run of all others
        raise
    except ArchbenchError as error:
        return _left_out(name, fixed, error, source)
    overrides, length = {**found.overrides, **fixed}, int(fixed["context_length"])
    return Contender(name, overrides, length, found.size, found.deviation, found.matched, found.reason, source)


def shared_fields(run: RunConfig, first: Architecture) -> dict[str, Any]:
    """Fields that are the same for all: what the user set, the first one's context, and the tokenizer's vocabulary."""
    fixed: dict[str, Any] = dict(run.overrides)
    config = first.config(run.preset, **fixed)
    fixed["context_length"] = config.context_length
    if run.vocabulary == "tokenizer":
        fixed.setdefault("vocab_size", prepare(run.data).tokenizer.vocab_size)
    return fixed


def _left_out(name: str, fixed: Mapping[str, Any], error: ArchbenchError, source: str) -> Contender:
    reason = f"{error.culprit}: {error.cause}"
    return Contender(name, fixed, int(fixed["context_length"]), None, None, False, reason, source)


def _built(architecture: Architecture, config: ModelConfig) -> Size:
    import torch

    with torch.device("meta"):
        model = architecture.build(config)
    return size_of(model, config.context_length)
