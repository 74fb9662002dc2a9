"""Whose line is it: of all that a traceback names, the one that a plugin's author can mend."""

from __future__ import annotations

import linecache
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import archbench

_ARCHBENCH = str(Path(archbench.__file__).parent) + "/"
_STANDARD = sysconfig.get_path("stdlib") + "/"
_INSTALLED = "/site-packages/"
_HARNESS = ("torch", "pluggy", "pydantic", "numpy", "safetensors", "_pytest", "pytest")
"""Installed packages that call a plugin or are called by it, and are no plugin."""

_FAULTHANDLER_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in ', re.MULTILINE)


def plugin_line(frames: Iterable[tuple[str, int | None]]) -> str:
    """``" (my_arch.py:34: return self.head(x))"``, the innermost line that is the plugin's; "" where none is.

    Args:
        frames: file and line number, innermost first.
    """
    known = [(file, line) for file, line in frames if line and not file.startswith((_ARCHBENCH, "<"))]
    own = [(file, line) for file, line in known if _INSTALLED not in file and not file.startswith(_STANDARD)]
    packaged = [
        (file, line)
        for file, line in known
        if _INSTALLED in file and not file.rpartition(_INSTALLED)[2].startswith(tuple(f"{name}/" for name in _HARNESS))
    ]
    for file, line in own or packaged:
        return f" ({file}:{line}: {linecache.getline(file, line).strip()})"
    return ""


def dumped_frames(text: str) -> list[tuple[str, int | None]]:
    """The frames in what :mod:`faulthandler` wrote, innermost first."""
    return [(match["file"], int(match["line"])) for match in _FAULTHANDLER_FRAME.finditer(text)]
