"""Fixtures that several test files share."""

from __future__ import annotations

import compileall
import gc
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import archbench, own_process
from installations import RunCLI, write_package

# A script's shell has what it starts in the background ignore interrupts, and so would what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None:  # pytest -n: as many processes as cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):  # each on a core of its own: threads that wait for each other's cores spin
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
os.fsync = lambda descriptor: None  # type: ignore[assignment, misc]  # tests cut no power: none waits for a disk
os.environ.pop("COLUMNS", None)  # pytest -n sets it for its workers: tables would wrap in what tests start
os.unsetenv("COLUMNS")  # GNU readline, which pytest imports, sets it where os.environ does not see it

EXAMPLES = Path(__file__).parent / "example_plugins"

Install = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    """Where Python is told to write no bytecode, each process that tests start would compile all of archbench anew."""
    if worker is None and sys.dont_write_bytecode:
        for name in ("archbench", "archbench_kernelcheck", "plugins"):
            compileall.compile_dir(Path(__file__).parents[1] / name, quiet=2, workers=0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The example's tests are as a user's: what takes longest of them is slow here alone."""
    for item in items:
        if item.nodeid.endswith("test_decay.py::TestDecay::test_conformance[compile]"):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What collection made lives until the end: a million objects that no later garbage collection has to visit."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests mostly stay together, so its fixtures are made once; a worker that runs out takes some over."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _settings_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a developer trusts changes no test, and tests add nothing to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHBENCH_CONFIG", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture(autouse=True)
def _no_plugins_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings change no test."""
    for name in ("ARCHBENCH_PLUGINS", "ARCHBENCH_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def minimal_plugin() -> str:
    """Source of a complete plugin called bigram."""
    return (EXAMPLES / "bigram.py").read_text()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package as pip leaves it: a module and a dist-info folder on the path, here and in child processes."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))

    def install_package(package: str, name: str, source: str | None, *, version: str = "1.0") -> Path:
        write_package(site, package, name, source, version)
        importlib.invalidate_caches()
        return site

    yield install_package
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(site)):
            del sys.modules[name]


@pytest.fixture
def cli(tmp_path: Path) -> RunCLI:
    """Run a command in an empty folder, in this process; in a fresh one with ``fresh=True`` or ``module=True``."""

    def run_cli(
        *arguments: str | Path,
        cwd: Path | None = None,
        fresh: bool = False,
        module: bool = False,
        env: dict[str, str] | None = None,
        timeout: float = 300,  # seconds, of a fresh process
    ) -> subprocess.CompletedProcess[str]:
        empty = tmp_path / "cwd"
        empty.mkdir(exist_ok=True)
        if fresh or module:
            return own_process(*arguments, cwd=cwd or empty, env=env, module=module, timeout=timeout)
        return archbench(*arguments, cwd=cwd or empty, env=env)

    return run_cli
