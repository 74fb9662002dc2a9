"""Which line of the plugin is at fault: of all that a traceback names, the one that the plugin's author can fix."""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

import archbench
from archbench.errors import ArchbenchError, HookFailedError, one_line

_ARCHBENCH = Path(archbench.__file__).parent.as_posix() + "/"
_STANDARD = Path(sysconfig.get_path("stdlib")).as_posix() + "/"
_INSTALLED = "/site-packages/"
_HARNESS = ("torch", "pluggy", "pydantic", "numpy", "safetensors", "_pytest", "pytest")
"""Installed packages that call a plugin or are called by it, but are no plugin."""

_FAULTHANDLER_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in ', re.MULTILINE)


def plugin_line(frames: Iterable[tuple[str, int | None]]) -> str:
    """``" (my_arch.py:34: return self.head(x))"``, the innermost line in the plugin; "" where there is none.

    Where the plugin calls somebody else's library, the innermost line there follows: ``…; in transformers/masks.py:761:
    if mask.all():``.

    Args:
        frames: file and line number, innermost first.
    """
    posix = ((file.replace(os.sep, "/"), line) for file, line in frames)
    known = [(file, line) for file, line in posix if line and not file.startswith((_ARCHBENCH, "<"))]
    own = [(file, line) for file, line in known if _INSTALLED not in file and not file.startswith(_STANDARD)]
    packaged = [
        (file, line)
        for file, line in known
        if _INSTALLED in file and not file.rpartition(_INSTALLED)[2].startswith(tuple(f"{name}/" for name in _HARNESS))
    ]
    if not own and not packaged:
        return ""
    file, line = (own or packaged)[0]
    text = f"{file}:{line}: {linecache.getline(file, line).strip()}"
    if own and packaged and known.index(packaged[0]) < known.index(own[0]):
        file, line = packaged[0]
        text += f"; in {file.rpartition(_INSTALLED)[2]}:{line}: {linecache.getline(file, line).strip()}"
    return f" ({text})"


def root_cause_line(error: BaseException) -> str:
    """The plugin's line that raised the first of a chain of exceptions; "" where none did."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _raising_line(error)


def raised(error: BaseException) -> str:
    """What a plugin raised, as a clause: ``IndexError: index out of range (my_arch.py:34: return self.table[i])``."""
    if isinstance(error, HookFailedError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ArchbenchError):
        return one_line(error)  # it names its culprit itself
    return one_line(error) + _raising_line(error)


def _raising_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return plugin_line((frame.filename, frame.lineno) for frame in reversed(frames))


def dumped_frames(text: str) -> list[tuple[str, int | None]]:
    """The frames in a dump by :mod:`faulthandler`, innermost first."""
    return [(match["file"], int(match["line"])) for match in _FAULTHANDLER_FRAME.finditer(text)]
