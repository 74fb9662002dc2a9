"""The audit of a run: what was measured is held to what can be measured again, and is refused where the two differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from archbench.errors import ConformanceError
from archbench.runs.folder import RunFolder
from archbench.runs.rows import Rows
from archbench.training.step_audit import Finding, fingerprint


class Audit:
    """The findings about one phase: the largest of each metric, in the order of their first appearance.

    A phase of a run that was started with ``--unchecked`` records what is wrong and goes on.
    """

    def __init__(self, run: RunFolder, phase: str) -> None:
        self._run, self._phase = run, phase
        self._worst: dict[str, Finding] = {}

    def __call__(self, finding: Finding) -> None:
        """Take a finding.

        Raises:
            ConformanceError: it is beyond its tolerance, so the phase's numbers mean nothing.
        """
        before = self._worst.get(finding.metric)
        if before is None or before.value is None or finding.failed or (finding.value or 0.0) > before.value:
            self._worst[finding.metric] = finding
        config = self._run.config
        if finding.failed and config.checked:
            raise ConformanceError(
                f"architecture {config.architecture} (preset {config.preset})",
                f"the audit of its phase {self._phase} found that {finding.meaning} ({finding.metric} is "
                f"{finding.value:.2g}, and more than {finding.tolerance:.2g} is no rounding)",
                f"Correct it (archbench check {config.architecture} may show the place), or measure it all the same "
                "with --unchecked",
            )

    def add_to(self, rows: Rows) -> None:
        """A row for each metric, and ``audit_passed``."""
        for finding in self._worst.values():
            rows.add(finding.metric, finding.value)
        rows.add("audit_passed", not any(finding.failed for finding in self._worst.values()))


@contextmanager
def scoring_leaves_alone(model: nn.Module, report: Callable[[Finding], None]) -> Iterator[None]:
    """Report whether parameters or stored buffers are afterwards what they were."""
    before = fingerprint(model.state_dict().values())
    yield
    names, now = list(model.state_dict()), fingerprint(model.state_dict().values())
    changed = torch.nonzero(before != now).flatten().tolist() if before.shape == now.shape else list(range(len(names)))
    culprit = f" {names[changed[0]]}" if changed else ""
    meaning = f"scoring text changes{culprit} in its state_dict: what was scored can be remembered"
    report(Finding("audit_state", float(len(changed)), 0.0, meaning))
