"""What tests say about installed packages and the installed command; the fixtures are in conftest.py."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from forked_children import ForkedCommand

RunCLI = Callable[..., "subprocess.CompletedProcess[str]"]


def write_package(site: Path, package: str, name: str, source: str | None, version: str = "1.0") -> None:
    """A distribution whose entry point ``name`` is its module; without ``source``, that module is missing."""
    module = package.replace("-", "_")
    info = site / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[archbench]\n{name} = {module}\n")
    if source is not None:
        (site / f"{module}.py").write_text(source)


def kill_when_said(beginning: str, *command: str | Path, cwd: Path) -> None:
    """Kill -9 an archbench command once a line of its log begins so, after its time; nothing may live on in ``cwd``."""
    running = ForkedCommand(*command, cwd=cwd)
    while not [line for line in running.said().splitlines() if line.partition("  ")[2].startswith(beginning)]:
        assert psutil.pid_exists(running.process.pid), running.finished().stderr
        time.sleep(0.01)
    running.process.kill()
    running.finished()
    deadline = time.monotonic() + 20
    while left := [process for process in psutil.process_iter() if _stands_in(process, cwd)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)


def _stands_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder
    except psutil.Error:  # it has ended, or is somebody else's
        return False
