"""The process in which a stranger's code is checked: ``python -P -m archbench.testing.worker PIPE TRACES REQUEST``.

PIPE and TRACES are numbers of open files, REQUEST is JSON: what :mod:`archbench.testing.isolation` passes. It sends one
JSON line each: the checks that it will run, that the plugin is loaded (or the error), and every result as it comes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from archbench.errors import ArchbenchError
from archbench.kernels.triton_guard import without_triton
from archbench.plugin.registry import load
from archbench.processes import end_with_parent
from archbench.testing.catalogue import CHECKS
from archbench.testing.checks import evaluate, selected
from archbench.testing.expectations import checked_expectations
from archbench.testing.isolation import TELL
from archbench.testing.subject import Subject


class Sender:
    """Messages to the parent, through a file that the processes which a plugin starts do not inherit."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._process = os.getpid()

    def send(self, **message: Any) -> None:
        """One line. A copy of this process, which a plugin has forked and let go on, ends here instead."""
        if os.getpid() != self._process:
            os._exit(0)
        line = (json.dumps(message) + "\n").encode()
        while line:
            line = line[os.write(self._descriptor, line) :]


def main(arguments: list[str]) -> int:
    """Run the checks that the request names, or all; 0 even where some fail."""
    end_with_parent()
    sender, traces, request = Sender(int(arguments[0])), int(arguments[1]), json.loads(arguments[2])
    os.set_inheritable(traces, False)
    faulthandler.enable(traces, all_threads=False)
    faulthandler.register(TELL, traces, all_threads=False)
    # Torch's compiler, which an optimizer loads, would import Triton, and with it what a run on a CPU does without.
    with without_triton() if request["device"] == "cpu" else nullcontext():
        try:
            _run(sender, request)
        except ArchbenchError as error:
            sender.send(error=error.as_dict(), traceback=traceback.format_exc())
    return 0


def _run(sender: Sender, request: dict[str, Any]) -> None:
    expected = checked_expectations(request["expected_failures"], [check.name for check in CHECKS], "--xfail")
    checks = CHECKS if request["checks"] is None else selected(request["checks"], CHECKS)
    sender.send(checks=[{"name": check.name, "why": check.why, "gate": check.gate} for check in checks])
    architecture = load(request["architecture"], request["plugins"])
    config = architecture.config(request["preset"], **request["overrides"])
    sender.send(loaded=architecture.name)
    subject = Subject(architecture, config, request["device"], seed=request["seed"])
    for result in evaluate(subject, checks, expected, failed=request["failed"]):
        sender.send(result=asdict(result))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
