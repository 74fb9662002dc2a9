"""The gate: nothing is measured of an architecture that fails the conformance checks, unless a run is told to."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import torch

from archbench.errors import StorageError
from archbench.phases.conformance import Findings
from archbench.phases.folder import RunFolder
from archbench.phases.loading import count_parameters, load_architecture
from archbench.phases.rows import Rows

VALUES = {"passed": 1.0, "failed": 0.0}


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
    subject = Subject(architecture, model_config, device)
    results: list[dict[str, Any]] = []
    outcomes = evaluate(subject, GATE)
    # What is running is known to the runner, should it never end.
    for check in GATE:
        _keep(run, Findings(results, running=check.name))
        results.append(asdict(next(outcomes)))
    findings = Findings(results)
    _keep(run, findings)
    for result in results:
        rows.add(result["name"], VALUES.get(result["status"]))
    if findings.failed:
        return
    rows.common |= {"parameters": count_parameters(subject.build())}
    if not quiet:
        seconds = sum(result["seconds"] for result in results)
        label = f"{run.config.architecture} {run.config.preset}"
        print(f"{label}: passed the conformance checks in {seconds:.1f} s", file=sys.stderr, flush=True)


def _keep(run: RunFolder, findings: Findings) -> None:
    try:
        findings.write(run)
    except OSError as error:
        raise StorageError(
            f"run folder {run.path}", f"it cannot be written ({error.strerror})", "Make room, then run again"
        ) from error
