"""The cache folder: files named by the hash of their sources, each written completely or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from archbench.errors import StorageError, storing
from archbench.files.writing import replace_atomically


def cache_folder() -> Path:
    """``$ARCHBENCH_CACHE``, or archbench's folder in the platform's caches (Linux: ``~/.cache/archbench``).

    Raises:
        StorageError: the user has no home folder.
    """
    if chosen := os.environ.get("ARCHBENCH_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "archbench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "archbench" / "Cache"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        raise StorageError(
            "the cache folder", "this user has no home folder", "Set ARCHBENCH_CACHE to a folder that can be written"
        ) from None


def content_key(*parts: str) -> str:
    """A hash of ``parts``, short enough for a file name."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """:func:`replace_atomically` in the cache folder, which is created if missing.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    next_step = "Free space there, or set ARCHBENCH_CACHE to a writable folder"
    with storing(f"cache folder {str(path.parent)!r}", next_step):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, write)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within this context nobody else makes the cached file, which takes long; death lets the next one in.

    Without locks on that file system, and where nothing can be written, several make the same: that is only slower.
    """
    import filelock

    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # whoever waits has it open, and looks for the cached file first
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
