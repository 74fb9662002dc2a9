"""Fixtures that several test files share."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from installations import RunCLI, write_package

# A script's shell has what it starts in the background ignore interrupts, and so would what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:  # pytest -n: as many processes as cores, each of one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # pytest -n sets it for its workers: tables would wrap in what tests start

EXAMPLES = Path(__file__).parent / "example_plugins"

Install = Callable[..., Path]


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
    """Run the installed ``archbench`` command in a fresh process and an empty folder; stdin is closed."""

    def run_cli(
        *arguments: str | Path,
        cwd: Path | None = None,
        module: bool = False,
        env: dict[str, str] | None = None,
        timeout: float = 300,  # seconds
    ) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).with_name("archbench")
        command = [sys.executable, "-m", "archbench"] if module else [str(script)]
        empty = tmp_path / "cwd"
        empty.mkdir(exist_ok=True)
        return subprocess.run(
            [*command, *map(str, arguments)],
            cwd=cwd or empty,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run_cli
