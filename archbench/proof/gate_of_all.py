"""The conformance checks of every built-in architecture, on the device; on a CPU those that a run asks for."""

from __future__ import annotations

from archbench.proof.statements import Bench, Statements, judged
from archbench.proof.whole_models import builtin
from archbench.testing.checks import GATE
from archbench.testing.isolation import Request, check_apart


def checks(bench: Bench) -> Statements:
    """One statement an architecture. Compiling all ten takes two CPU cores longer than a proof may."""
    asked = None if bench.gpu else tuple(check.name for check in GATE)
    command = "archbench check" if bench.gpu else "checks before a run of"
    for name in builtin():
        request = Request(architecture=name, checks=asked, device=str(bench.device))
        results = [result for _, result in check_apart(request)]
        failed = [result for result in results if not result.good]
        shown = f"{len(results) - len(failed)} of {len(results)}"
        if failed:
            shown += f"; {failed[0].name}: {failed[0].evidence}"
        yield judged(f"{command} {name}", not failed, "all checks hold", shown)
