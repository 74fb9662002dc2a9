"""What tests say about installed packages and the installed command; the fixtures are in conftest.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

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


def kill_when_said(beginning: str, *command: str | Path) -> None:
    """Kill -9 an archbench command once a line of its log begins so; no process of it may be left."""
    script = Path(sys.executable).with_name("archbench")
    process = subprocess.Popen([script, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.partition("  ")[2].startswith(beginning):  # after the time
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.1)
