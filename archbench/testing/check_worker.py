"""The child process in which a plugin is checked (:mod:`archbench.testing.isolation`).

It sends the checks that it will run, then that the plugin is loaded, then each result as it comes.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from archbench.kernels.triton_guard import without_triton
from archbench.plugin.registry import load
from archbench.testing.checks import CHECKS
from archbench.testing.evaluation import checked_expectations, evaluate, selected
from archbench.testing.global_state import import_watched
from archbench.testing.subject import Subject

if TYPE_CHECKING:
    from archbench.child.entry import Parent


def main(parent: Parent, content: dict[str, Any]) -> None:
    """Run the checks that the request names, or all of them."""
    request = content["request"]
    # Torch's compiler, which an optimizer loads, would import Triton, which a run on a CPU does without.
    with without_triton() if request["device"] == "cpu" else nullcontext():
        expected = checked_expectations(request["expected_failures"], CHECKS, "--xfail")
        checks = CHECKS if request["checks"] is None else selected(request["checks"], CHECKS)
        parent.send([{"name": check.name, "why": check.why, "gate": check.gate} for check in checks])
        with import_watched() as changes:
            architecture = load(request["architecture"], request["plugins"])
        config = architecture.config(request["preset"], **request["overrides"])
        parent.send("loaded")
        subject = Subject(architecture, config, request["device"], seed=request["seed"], import_changes=changes)
        for result in evaluate(subject, checks, expected, failed=content["failed"]):
            parent.send(asdict(result))
