"""pytest options of the conformance suite and the regression checks.

A module beside the package: pytest loads it in every session, and archbench only where it is used.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

OPTIONS = {
    "arch": ("NAME", "an architecture to check: pytest --pyargs archbench.testing --archbench-arch NAME"),
    "plugin": ("FILE_OR_DIR", "a plugin that is not installed, for --archbench-arch"),
    "preset": ("NAME", "the model's size, for --archbench-arch (default: nano)"),
    "xfail": ("CHECK=REASON", "a check that --archbench-arch is known to fail, and why; it fails if it passes"),
}
COUNTING = "counting the exact costs"
"""Name of the group of benchmarks whose results are counts, in their ``extra_info``."""

Groups = list[tuple[str | None, list[Any]]]
"""Name and benchmarks of each table of pytest-benchmark."""

SESSION = pytest.StashKey[Any]()
"""The session's archbench.testing.baseline_session.BaselineSession, once a test has asked for it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("archbench", "archbench: conformance and regressions of language-model architectures")
    for name, (value, text) in OPTIONS.items():
        once = name == "preset"
        group.addoption(
            f"--archbench-{name}",
            action="store" if once else "append",
            default=None if once else [],
            metavar=value,
            help=text if once else f"{text} (repeatable)",
        )
    group.addoption(
        "--archbench-baseline",
        choices=("save", "compare"),
        help="with --benchmark-only: measure --archbench-arch and save it as the baseline, or compare it with that",
    )
    group.addoption("--require-baseline", action="store_true", help="fail what the baseline lacks (otherwise: NEW)")
    group.addoption(
        "--archbench-baseline-dir",
        metavar="DIR",
        help="where baselines are, from the root folder on (default: archbench in --benchmark-storage)",
    )
    group.addoption(
        "--archbench-rounds",
        type=int,
        default=8,
        metavar="N",
        help="fresh processes a time is measured in, up to twice as many where it is unclear (default: 8)",
    )
    group.addoption(
        "--archbench-device",
        default="cpu",
        metavar="DEVICE",
        help="where to time; of a GPU also count what it is asked for (default: cpu)",
    )
    group.addoption(
        "--archbench-exclusive", action="store_true", help="nobody else uses the GPU: its times are judged as well"
    )
    group.addoption("--archbench-report", metavar="FILE", help="write the comparison as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("archbench_baseline") and not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--archbench-baseline needs pytest-benchmark: pip install pytest-benchmark")
    if config.getoption("require_baseline") and config.getoption("archbench_baseline") != "compare":
        raise pytest.UsageError("--require-baseline is for --archbench-baseline compare")
    if config.getoption("archbench_rounds") < 2:
        raise pytest.UsageError("--archbench-rounds: fewer than 2 processes have no interval")
    if config.getoption("archbench_arch"):
        return
    for name in (*OPTIONS, "baseline"):
        if config.getoption(f"archbench_{name}"):
            raise pytest.UsageError(f"--archbench-{name} is for --archbench-arch NAME, which is missing")
    asked = [argument.partition("::")[0] for argument in config.args]
    if config.getoption("pyargs") and any(f"{name}.".startswith("archbench.testing.") for name in asked):
        raise pytest.UsageError(
            "--pyargs archbench.testing checks the architectures that --archbench-arch NAME names, and there is none; "
            "archbench list shows those that are installed"
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of archbench.testing's two test files, collect those that were asked for: checks, benchmarks, or both."""
    if collection_path.parts[-3:-1] != ("archbench", "testing"):
        return None
    benchmarks_only = bool(config.getoption("benchmark_only", False))
    benchmarks = benchmarks_only or config.getoption("archbench_baseline") is not None
    unwanted = {"test_architecture.py": benchmarks_only, "test_regression.py": not benchmarks}
    return unwanted.get(collection_path.name) or None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Generator[None]:
    session = config.stash.get(SESSION, None)
    if session is not None:
        session.report(terminalreporter)  # before pytest's own failures, which repeat lines of it
    yield
    if session is not None:
        session.name_saved(terminalreporter)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_benchmark_group_stats() -> Generator[None, Groups, Groups]:
    """In pytest-benchmark's table, the time that counting takes would look like a cost."""
    return [(name, benchmarks) for name, benchmarks in (yield) if name != COUNTING]
