"""The conformance checks of every built-in architecture, on the device."""

from __future__ import annotations

from archbench.proof.statements import Bench, Statements, judged
from archbench.proof.whole_models import builtin
from archbench.testing.isolation import Request, check_apart


def checks(bench: Bench) -> Statements:
    """One statement an architecture."""
    for name in builtin():
        results = [result for _, result in check_apart(Request(architecture=name, device=str(bench.device)))]
        failed = [result for result in results if not result.good]
        shown = f"{len(results) - len(failed)} of {len(results)}"
        if failed:
            shown += f"; {failed[0].name}: {failed[0].evidence}"
        yield judged(f"archbench check {name}", not failed, "all checks hold", shown)
