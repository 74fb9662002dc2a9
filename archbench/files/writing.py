"""Writing files so that readers see all of a file or none of it."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from archbench.interruption import underway


def replace_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace ``path`` by the file that ``write`` fills; readers see the old or the new content, never a part.

    Several processes may write the same path: the last one wins.

    Raises:
        OSError: the folder cannot be written, or the disk is full; ``path`` is unchanged.
    """
    temporary = temporary_beside(path)
    with underway():
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def temporary_beside(path: Path) -> Path:
    """A new hidden name in the same folder, which tells this process.

    Not tempfile's, whose files are private: a cache may be shared.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


_TEMPORARY = re.compile(r"\..*\.(\d+)[-.][0-9a-f]{6,8}(\.tmp)?")


def writer(path: Path) -> int | None:
    """The pid of the process that made this temporary name; None for other names."""
    found = _TEMPORARY.fullmatch(path.name)
    return int(found[1]) if found else None


def set_aside(path: Path) -> Path:
    """Rename a damaged file to ``NAME.damaged``, which nobody reads. Returns the new path.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    return aside


def flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """:func:`replace_atomically` with a content that is made already.

    Raises:
        OSError: the folder cannot be written.
    """
    replace_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`."""
    write_bytes(path, text.encode())
