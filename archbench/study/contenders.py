"""The size of each architecture: matched to the baseline or to a number, or left out with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from archbench.config import ModelConfig, RunConfig
from archbench.data.dataset import prepare
from archbench.errors import ArchbenchError, ConfigError, UnknownNameError, UsageError
from archbench.measure.sizes import Size, size_of
from archbench.plugin.architecture import Architecture
from archbench.plugin.growth import check_room
from archbench.plugin.registry import load
from archbench.study.contract import Contender
from archbench.study.matching import match
from archbench.study.run_cells import source_digest
from archbench.study.shapes import Quantity

if TYPE_CHECKING:
    from archbench.study.compare_plan import ComparePlan

TOLERANCE = 0.02
"""Largest relative deviation of a matched quantity from its target."""

DEFAULT: Quantity = "non_embedding_active_parameters"

QUANTITIES: dict[str, Quantity | None] = {
    "flops": "non_embedding_active_parameters",
    "params": "non_embedding_active_parameters",
    "state": "state_bytes",
    "tokens": None,
    "time": None,
}
"""The quantity that each way of matching makes equal by a search of shapes."""


def contenders(plan: ComparePlan) -> list[Contender]:
    """Every architecture of the plan, in its order; the baseline at its preset's own size.

    Raises:
        UnknownNameError: an architecture or its preset does not exist.
        ArchbenchError: the baseline cannot be loaded or built. Others that cannot are left out with the reason.
    """
    baseline = load(plan.baseline, plan.run.plugins)
    fixed = shared_fields(plan.run, baseline)
    reference = built_size(baseline, baseline.config(plan.run.preset, **fixed))
    quantity = QUANTITIES[plan.match]
    target = None if quantity is None else getattr(reference, quantity)
    if quantity == "state_bytes" and target is None:
        cause = "it decodes without a cache, so there is no state to match"
        raise UsageError(f"baseline {plan.baseline}", cause, "Take another --baseline, or match something else")
    found = []
    for name in plan.architectures:
        if name == plan.baseline:
            source, deviation = source_digest(baseline), None if quantity is None else 0.0
            length = int(fixed["context_length"])
            found.append(Contender(name, fixed, source, None, length, size=reference, deviation=deviation))
        else:
            found.append(sized(name, plan.run.preset, plan.run.plugins, fixed, target, quantity or DEFAULT))
    return found


def sized(
    name: str,
    preset: str,
    plugins: Sequence[str],
    fixed: Mapping[str, Any],
    target: float | None = None,
    quantity: Quantity = DEFAULT,
) -> Contender:
    """An architecture at its preset's size, or at the size that has ``target`` of ``quantity``.

    It is left out, with the reason, if it cannot be loaded, built or given that size.

    Args:
        preset: where the search begins.
        fixed: fields that are not varied, including ``context_length``.

    Raises:
        UnknownNameError: the architecture or its preset does not exist.
    """
    one = Contender(name, fixed, "", context_length=int(fixed["context_length"]))
    try:
        architecture = load(name, plugins)
        one = replace(one, source=source_digest(architecture))
        if target is None:
            return replace(one, size=built_size(architecture, architecture.config(preset, **fixed)))
        if quantity == DEFAULT:
            check_room(f"{target:,.0f} parameters", "its weights alone take", 4 * target, "cpu")
        found = match(architecture, preset, fixed, target, quantity, tolerance=TOLERANCE)
    except UnknownNameError:  # most likely a typo: stop before anything is measured
        raise
    except ArchbenchError as error:
        return replace(one, reason=f"{error.culprit}: {error.cause}")
    overrides = {**found.overrides, **fixed}
    return replace(one, overrides=overrides, size=found.size, deviation=found.deviation, reason=found.reason)


def shared_fields(run: RunConfig, first: Architecture) -> dict[str, Any]:
    """Fields that all share: those set by the user, the first architecture's context, the tokenizer's vocabulary.

    Raises:
        ConfigError: the text is known as tokens only, and studies judge by bits per byte.
    """
    data = prepare(run.data)
    if data.validation_bytes is None:
        cause = f"{run.data.tokenizer} does not say which bytes a token stands for, and studies judge by bits per byte"
        step = "Name the byte-level tokenizer that the shards were made with: file:tokenizer.json or hf:NAME"
        raise ConfigError("data.tokenizer", cause, step)
    fixed: dict[str, Any] = dict(run.overrides)
    config = first.config(run.preset, **fixed)
    fixed["context_length"] = config.context_length
    if run.vocabulary == "tokenizer":
        fixed.setdefault("vocab_size", data.tokenizer.vocab_size)
    return fixed


def built_size(architecture: Architecture, config: ModelConfig) -> Size:
    """The size of a model, built on the meta device."""
    from archbench.measure.meta_device import meta_device

    with meta_device():
        model = architecture.build(config)
    return size_of(model, config.context_length)
