"""The cache folder: files named by the hash of what they were made from, each written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from archbench.errors import StorageError


def cache_folder() -> Path:
    """``$ARCHBENCH_CACHE``, or archbench's folder where the platform keeps caches (Linux: ``~/.cache/archbench``)."""
    if chosen := os.environ.get("ARCHBENCH_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "archbench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "archbench" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench"


def content_key(*parts: str) -> str:
    """A file name's worth of hash over ``parts``."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def replace_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Make ``path`` what ``write`` puts into a file; readers see the old content or the new, never a part.

    Any number of processes may write the same path: the last one wins.

    Raises:
        OSError: the folder cannot be written, or the disk is full; ``path`` is as it was.
    """
    # Not tempfile: its files are private, and a cache may be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """:func:`replace_atomically` in the cache folder, which is made if it is missing.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, write)
    except OSError as error:
        raise StorageError(
            f"cache folder {str(path.parent)!r}",
            f"it cannot be written ({error.strerror or error})",
            "Make room there, or set ARCHBENCH_CACHE to a folder that can be written",
        ) from None
