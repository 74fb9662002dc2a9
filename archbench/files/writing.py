"""Writing files so that readers see all of a file or none of it."""

from __future__ import annotations

import errno
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from archbench.interruption import underway

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""How file systems without hard links refuse one."""

PATIENCE = 2.0
"""Seconds that a reader may take on Windows."""


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
            _rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def create_once(path: Path, content: bytes) -> bool:
    """Create ``path`` with this content, whole, unless it exists; returns whether it was created.

    Of several processes, on several machines too, one creates it: hard links are atomic over NFS. Where the file system
    has no hard links, a reader may see a file that is still being written.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _rename(temporary: Path, path: Path) -> None:
    """Windows refuses while somebody reads ``path``, which takes a moment: it is asked again for :data:`PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > end:
                raise
        time.sleep(0.01)


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
    """Flush a file, or a folder's entries, to the disk; Windows has no way for folders."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
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
