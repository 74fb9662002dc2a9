"""Who is probed, and at which size: each architecture made as large as the plan says, or left out with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from archbench.compare.cells import source_digest
from archbench.compare.matching import match
from archbench.data.tasks import Task
from archbench.errors import ArchbenchError, UnknownNameError
from archbench.measure.sizes import Size, size_of
from archbench.plugin.architecture import Architecture
from archbench.plugin.registry import load
from archbench.probing.plan import TOLERANCE, ProbePlan
from archbench.probing.trials import model_config


@dataclass(frozen=True)
class Contender:
    """An architecture as it is probed.

    Attributes:
        architecture: its name.
        overrides: fields of its preset that are replaced, the matched ones among them.
        sizes: task -> parameters, FLOPs and state bytes at its vocabulary and longest example.
        reason: why it takes no part; None if it does.
        source, package, version: digest of its plugin's code, and where that is from.
    """

    architecture: str
    overrides: Mapping[str, Any]
    sizes: Mapping[str, Size]
    reason: str | None
    source: str
    package: str
    version: str


def contenders(plan: ProbePlan, tasks: Sequence[Task]) -> list[Contender]:
    """Every architecture of the plan, in its order.

    Raises:
        UnknownNameError: there is no architecture of one of the names, or it has no such preset.
    """
    return [_contender(plan, name, tasks) for name in plan.architectures]


def _contender(plan: ProbePlan, name: str, tasks: Sequence[Task]) -> Contender:
    source = package = version = ""
    try:
        architecture = load(name, plan.plugins)
        source, package, version = source_digest(architecture), architecture.package, architecture.version
        overrides, reason = _shape(plan, architecture, tasks[0])
        sizes = {task.name: _size(architecture, plan, task, overrides) for task in tasks} if reason is None else {}
    except UnknownNameError:  # most likely a slip of the pen
        raise
    except ArchbenchError as error:
        return Contender(name, plan.overrides, {}, f"{error.culprit}: {error.cause}", source, package, version)
    return Contender(name, overrides, sizes, reason, source, package, version)


def _shape(plan: ProbePlan, architecture: Architecture, task: Task) -> tuple[dict[str, Any], str | None]:
    """Fields that make it as large as the plan says, and why they do not, if they do not."""
    if plan.parameters is None:
        return dict(plan.overrides), None
    reads = {"vocab_size": task.vocab_size, "context_length": task.context_length}
    found = match(architecture, plan.preset, {**plan.overrides, **reads}, plan.parameters, tolerance=TOLERANCE)
    return {name: value for name, value in found.overrides.items() if name not in reads}, found.reason


def _size(architecture: Architecture, plan: ProbePlan, task: Task, overrides: Mapping[str, Any]) -> Size:
    with torch.device("meta"):
        return size_of(architecture.build(model_config(architecture, plan, task, overrides)), task.context_length)
