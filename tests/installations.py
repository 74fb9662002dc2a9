"""What tests say about installed packages and the installed command; the fixtures are in conftest.py."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

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
