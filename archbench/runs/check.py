"""The phase ``check``: an architecture must pass the conformance checks before it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
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
from archbench.runs.passed_checks import keep, question_of
from archbench.runs.rows import Rows
from archbench.testing.evaluation import Result

VALUES = {"passed": 1.0, "noted": 1.0, "failed": 0.0}

FLOPS = 1 << 38
"""Most FLOPs of one pass over the checked context, on a CPU: a few seconds of two cores."""
LOGITS = 1 << 28
"""Most logits of such a pass: 1 GiB in float32."""
SHORTEST = 128
"""Positions that are always checked, at any cost."""

PASSES = 200
"""About what all checks take, in forward passes of one sequence at the rate of a plain product: 120 of gpt1's preset
paper, 250 to 360 of models of ten million parameters, most of it for building, copying and updating them."""
SHORT = 1 << 37
"""FLOPs of that many passes, a few seconds of one core, below which one thread does them: on a busy machine two would
wait for each other at every operation, up to ten times as long as they compute."""
LONG = 1 << 42
"""FLOPs of that many passes from which the time is predicted, and said."""


def run_check(
    run: RunFolder, device: torch.device, rows: Rows, tell: Callable[[dict[str, Any]], None], *, quiet: bool
) -> None:
    """Check the run's own configuration; one row a check.

    Args:
        tell: called with what is about to be done, if that takes long, and with the findings (:class:`Findings` as a
            dict) and the number of checks before each check and at the end: the parent knows which never ended.
    """
    # Imported here: the child process of every phase imports this module, and would take more memory.
    from archbench.testing.checks import GATE
    from archbench.testing.evaluation import evaluate
    from archbench.testing.global_state import import_watched
    from archbench.testing.probes import Text
    from archbench.testing.subject import Subject

    question = question_of(run)
    with import_watched() as changes:
        architecture, model_config = load_architecture(run)
    affordable, flops = _affordable(architecture, model_config, device)
    if 0 < PASSES * flops < SHORT and device.type == "cpu":
        torch.set_num_threads(1)  # rows keep the run's number: none of the checks is timed
    if device.type == "cpu" and PASSES * flops > LONG:
        work = f"{len(GATE)} conformance checks on {affordable.context_length:,} positions"
        tell({"work": work, "seconds": PASSES * flops / _product_rate()})
    subject = Subject(
        architecture,
        affordable,
        device,
        import_changes=changes,
        text=Text.of(prepare(run.config.data, sha256=run.facts.get("corpus_sha256"))),
        batch_sizes=(run.config.quality.batch_size, *run.config.speed.batch_sizes),
    )
    results: list[Result] = []
    outcomes = evaluate(subject, GATE)
    for check in GATE:
        running = Findings(results, running=check.name, context_length=subject.T)
        tell({"findings": asdict(running), "checks": len(GATE)})
        results.append(next(outcomes))
    findings = Findings(results, context_length=subject.T)
    tell({"findings": asdict(findings), "checks": len(GATE)})
    for result in results:
        rows.add(result.name, VALUES.get(result.status))
    if findings.failed:
        return
    rows.common |= {"parameters": count_parameters(subject.build()), "context_length": subject.T}
    keep(run, question, findings, rows.finished(), architecture.files)
    if not quiet:
        seconds = sum(result.seconds for result in results)
        label = f"{run.config.architecture} {run.config.preset}"
        shorter = f", reading {subject.T:,} positions" if model_config.context_length > subject.T else ""
        echo(f"{label}: passed the conformance checks in {seconds:.1f} s{shorter}", error=True)
        for result in results:
            if result.status == "noted":
                echo(f"{label}: {result.name}: {result.evidence}", error=True)


def _product_rate() -> float:
    """FLOP/s of a matrix product of 1024 × 1024, now; a tenth of a second."""
    square = torch.ones(1024, 1024)
    square @ square
    start = time.perf_counter()
    for _ in range(3):
        square @ square
    return 3 * 2 * 1024**3 / (time.perf_counter() - start)


def _affordable(architecture: Architecture, config: ModelConfig, device: torch.device) -> tuple[ModelConfig, float]:
    """The configuration to check, and about the FLOPs of one pass over its context; 0 if it cannot be built.

    It is the run's own, with a shorter context if the whole one would take too long.

    The checks read a context some forty times, and hold its logits several times. A real model's 8,192 positions take
    minutes a pass on a CPU; faults that show only there are found by ``archbench check``.
    """
    try:
        with meta_device():
            parameters = count_parameters(architecture.build(config))
    except ArchbenchError:  # the checks will report it
        return config, 0.0
    most = LOGITS // config.vocab_size
    if device.type == "cpu":
        most = min(most, FLOPS // (2 * parameters))
    if config.context_length > max(most, SHORTEST):
        # One that does not accept that length is checked as it is.
        with suppress(ArchbenchError):
            config = config.override(context_length=max(SHORTEST, 1 << most.bit_length() - 1))
    return config, 2.0 * parameters * config.context_length
