"""Files that a user asked for: a page, images, a table. They replace nothing but an older one of their kind."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from archbench.errors import StorageError, UsageError
from archbench.files.loader import open_regular
from archbench.files.writing import write_bytes

Kind = Literal[
    "page",
    "image",
    "summary",
    "table of results",
    "comparison with a baseline",
    "comparison of revisions",
    "JSON Schema",
]

MADE_BY = b"Made by archbench"
"""Stands in each image, so that a later one may replace it."""

_SEEN = 1 << 16
"""Bytes at a file's beginning and at its end that tell what it is."""

_TELLING: dict[Kind, re.Pattern[bytes]] = {
    "page": re.compile(rb'<meta name="generator" content="archbench">'),
    "image": re.compile(MADE_BY),
    "summary": re.compile(rb"^## How it was made\r?$", re.MULTILINE),
    "table of results": re.compile(rb"\Arun_id,time_utc,schema_version,"),
    "comparison with a baseline": re.compile(rb'\A\[(\s*\]|\s*\{\s*"architecture":)'),
    "comparison of revisions": re.compile(rb"\A### archbench regress "),
    "JSON Schema": re.compile(rb'\A\{\s*"\$defs":'),
}


class Output(NamedTuple):
    """A file to be written.

    Attributes:
        path: as the user gave it.
        kind: what it will hold.
        option: that asked for it, for messages.
        instead: what replaces another file.
    """

    path: Path
    kind: Kind
    option: str = ""
    instead: str = "add --force to replace it"

    def __str__(self) -> str:
        return f"{self.option} {self.path}".strip()


def check_outputs(outputs: Sequence[Output], *, force: bool = False) -> None:
    """Refuse outputs that would replace a file of another kind, or each other. Called before the work begins.

    Args:
        force: whether files of other kinds may be replaced.

    Raises:
        UsageError: one is a folder, a device for blocks, a file of another kind, or the same as another.
    """
    places: dict[str, Output] = {}
    for output in outputs:
        _check(output, force)
        place = os.path.realpath(output.path)
        if place in places and not _is_stream(output.path):
            cause = f"it is the file of {places[place].option} too"
            raise UsageError(str(output), cause, "Choose another file for one of them")
        places[place] = output


def write_output(output: Output, content: bytes, *, force: bool = False, new_folder: bool = True) -> Path:
    """Write a file whole or not at all; a link stays a link. Devices, pipes and /dev/stdout are written to.

    Args:
        force: see :func:`check_outputs`.
        new_folder: create a missing folder.

    Raises:
        UsageError: as :func:`check_outputs`.
        StorageError: it cannot be written.
    """
    _check(output, force)
    path = output.path
    try:
        if _is_stream(path):
            with _opened(path) as stream:
                stream.write(content)
            return path
        if new_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(os.path.realpath(path)), content)
    except OSError as error:
        reason = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror or error
        cause = f"it cannot be written ({reason})"
        raise StorageError(str(output), cause, "Choose another file") from error
    return path


def _check(output: Output, force: bool) -> None:
    path = output.path
    if path.is_dir():
        raise UsageError(str(output), "it is a folder", "Name a file in it")
    if force or _is_stream(path) or not path.exists():
        return
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            seen = file.read(_SEEN)
            file.seek(max(0, size - _SEEN))
            seen += file.read(_SEEN)
    except OSError as error:
        cause = f"it exists and cannot be read ({error.strerror})"
        raise UsageError(str(output), cause, f"Choose another file, or {output.instead}") from error
    if seen and not _TELLING[output.kind].search(seen):
        cause = f"it exists and is not a {output.kind} that archbench made"
        raise UsageError(str(output), cause, f"Choose another file, or {output.instead}")


def _opened(path: Path) -> BinaryIO:
    """A stream to append to. A pipe that nobody reads is an error, and not an endless wait."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if sys.platform != "win32":
        os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")


def _is_stream(path: Path) -> bool:
    """Whether it is written to and not replaced."""
    if str(path).startswith(("/dev/std", "/dev/fd/", "/proc/self/fd/")):
        return True  # whatever the shell has connected it to
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
