"""The phase ``check``: an architecture must pass the conformance checks before it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from archbench.config import ModelConfig
from archbench.data.dataset import prepare
from archbench.errors import ArchbenchError
from archbench.measure.meta_device import meta_device
from archbench.plugin.architecture import Architecture
from archbench.presentation.terminal import echo
from archbench.runs.conformance import Findings
from archbench.runs.folder import RunFolder
from archbench.runs.models import count_parameters, load_architecture
from archbench.runs.rows import Rows
from archbench.testing.evaluation import Result

VALUES = {"passed": 1.0, "noted": 1.0, "failed": 0.0}

FLOPS = 1 << 38
"""Most FLOPs of one pass over the checked context, on a CPU: a few seconds of two cores."""
LOGITS = 1 << 28
"""Most logits of such a pass: 1 GiB in float32."""
SHORTEST = 128
"""Positions that are always checked, at any cost."""


def run_check(
    run: RunFolder, device: torch.device, rows: Rows, tell: Callable[[dict[str, Any]], None], *, quiet: bool
) -> None:
    """Check the run's own configuration; one row a check.

    Args:
        tell: called with the findings (:class:`Findings` as a dict) before each check and at the end, so that the
            parent knows which check never ended.
    """
    # Imported here: the child process of every phase imports this module, and would take more memory.
    from archbench.testing.checks import GATE
    from archbench.testing.evaluation import evaluate
    from archbench.testing.global_state import import_watched
    from archbench.testing.probes import Text
    from archbench.testing.subject import Subject

    with import_watched() as changes:
        architecture, model_config = load_architecture(run)
    subject = Subject(
        architecture,
        _affordable(architecture, model_config, device),
        device,
        import_changes=changes,
        text=Text.of(prepare(run.config.data, sha256=run.facts.get("corpus_sha256"))),
        batch_sizes=(run.config.quality.batch_size, *run.config.speed.batch_sizes),
    )
    results: list[Result] = []
    outcomes = evaluate(subject, GATE)
    for check in GATE:
        tell(asdict(Findings(results, running=check.name, context_length=subject.T)))
        results.append(next(outcomes))
    findings = Findings(results, context_length=subject.T)
    tell(asdict(findings))
    for result in results:
        rows.add(result.name, VALUES.get(result.status))
    if findings.failed:
        return
    rows.common |= {"parameters": count_parameters(subject.build()), "context_length": subject.T}
    if not quiet:
        seconds = sum(result.seconds for result in results)
        label = f"{run.config.architecture} {run.config.preset}"
        shorter = f", reading {subject.T:,} positions" if model_config.context_length > subject.T else ""
        echo(f"{label}: passed the conformance checks in {seconds:.1f} s{shorter}", error=True)
        for result in results:
            if result.status == "noted":
                echo(f"{label}: {result.name}: {result.evidence}", error=True)


def _affordable(architecture: Architecture, config: ModelConfig, device: torch.device) -> ModelConfig:
    """The configuration to check: the run's own, with a shorter context if the whole one would take too long.

    The checks read a context some forty times, and hold its logits several times. A real model's 8,192 positions take
    minutes a pass on a CPU; faults that show only there are found by ``archbench check``.
    """
    if config.context_length <= SHORTEST:
        return config
    try:
        with meta_device():
            parameters = count_parameters(architecture.build(config))
    except ArchbenchError:  # the checks will report it
        return config
    most = LOGITS // config.vocab_size
    if device.type == "cpu":
        most = min(most, FLOPS // (2 * parameters))
    if config.context_length <= most:
        return config
    try:
        return config.override(context_length=max(SHORTEST, 1 << most.bit_length() - 1))
    except ArchbenchError:  # it does not accept that length, and is checked as it is
        return config
