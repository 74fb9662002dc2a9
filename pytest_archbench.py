"""pytest options of the conformance kit; what they are for is imported when it is used.

A module beside the package and not in it: pytest loads it in every session, and archbench only where it is meant.
"""

from __future__ import annotations

import pytest

OPTIONS = {
    "arch": ("NAME", "an architecture to check: pytest --pyargs archbench.testing --archbench-arch NAME"),
    "plugin": ("FILE_OR_DIR", "a plugin that is not installed, for --archbench-arch"),
    "preset": ("NAME", "the model's size, for --archbench-arch (default: nano)"),
    "xfail": ("CHECK=REASON", "a check that --archbench-arch is known to fail, and why; it fails if it passes"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("archbench", "archbench: conformance of language-model architectures")
    for name, (value, text) in OPTIONS.items():
        once = name == "preset"
        group.addoption(
            f"--archbench-{name}",
            action="store" if once else "append",
            default=None if once else [],
            metavar=value,
            help=text if once else f"{text} (repeatable)",
        )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("archbench_arch"):
        return
    for name in OPTIONS:
        if config.getoption(f"archbench_{name}"):
            raise pytest.UsageError(f"--archbench-{name} is for --archbench-arch NAME, which is missing")
    asked = [argument.partition("::")[0] for argument in config.args]
    if config.getoption("pyargs") and any(f"{name}.".startswith("archbench.testing.") for name in asked):
        raise pytest.UsageError(
            "--pyargs archbench.testing checks the architectures that --archbench-arch NAME names, and there is none; "
            "archbench list shows those that are installed"
        )
