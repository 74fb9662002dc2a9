"""The gate: nothing is measured of an architecture that fails the conformance checks, unless a run is told to."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import torch

from archbench.config import ModelConfig
from archbench.errors import ArchbenchError, StorageError
from archbench.phases.conformance import Findings
from archbench.phases.folder import RunFolder
from archbench.phases.loading import count_parameters, load_architecture
from archbench.phases.rows import Rows
from archbench.plugin.architecture import Architecture

VALUES = {"passed": 1.0, "failed": 0.0}

FLOPS = 1 << 38
"""Of one pass over the context that is checked, on a CPU: a few seconds of two cores."""
LOGITS = 1 << 28
"""Of such a pass: 1 GiB in float32."""
SHORTEST = 128
"""Positions, whatever they cost."""


def run_check(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None:
    """Check the run's own configuration; one row a check, and the evidence in the run's folder as it comes.

    Raises:
        StorageError: the folder cannot be written.
    """
    # Imported here: the worker of every phase imports this module, and the kit's are no part of what the others weigh.
    from archbench.testing.catalogue import GATE
    from archbench.testing.checks import evaluate
    from archbench.testing.subject import Subject

    architecture, model_config = load_architecture(run)
    subject = Subject(architecture, _affordable(architecture, model_config, device), device)
    results: list[dict[str, Any]] = []
    outcomes = evaluate(subject, GATE)
    # What is running is known to the runner, should it never end.
    for check in GATE:
        _keep(run, Findings(results, running=check.name, context_length=subject.T))
        results.append(asdict(next(outcomes)))
    findings = Findings(results, context_length=subject.T)
    _keep(run, findings)
    for result in results:
        rows.add(result["name"], VALUES.get(result["status"]))
    if findings.failed:
        return
    rows.common |= {"parameters": count_parameters(subject.build()), "context_length": subject.T}
    if not quiet:
        seconds = sum(result["seconds"] for result in results)
        label = f"{run.config.architecture} {run.config.preset}"
        shorter = f", reading {subject.T:,} positions" if model_config.context_length > subject.T else ""
        print(f"{label}: passed the conformance checks in {seconds:.1f} s{shorter}", file=sys.stderr, flush=True)


def _affordable(architecture: Architecture, config: ModelConfig, device: torch.device) -> ModelConfig:
    """The configuration to check: the run's own, with a shorter context where a whole one would take too long.

    The checks read a context some twenty times, and hold its logits several times. A real model's 8,192 positions are
    minutes a pass on a CPU; what goes wrong there and not in a few hundred is what ``archbench check`` is for.
    """
    if config.context_length <= SHORTEST:
        return config
    try:
        with torch.device("meta"):
            parameters = count_parameters(architecture.build(config))
    except ArchbenchError:  # the checks are what says so
        return config
    most = LOGITS // config.vocab_size
    if device.type == "cpu":
        most = min(most, FLOPS // (2 * parameters))
    if config.context_length <= most:
        return config
    try:
        return config.override(context_length=max(SHORTEST, 1 << most.bit_length() - 1))
    except ArchbenchError:  # a configuration with an opinion on lengths is checked as it is
        return config


def _keep(run: RunFolder, findings: Findings) -> None:
    try:
        findings.write(run)
    except OSError as error:
        raise StorageError(
            f"run folder {run.path}", f"it cannot be written ({error.strerror})", "Make room, then run again"
        ) from error
