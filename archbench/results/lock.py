"""A folder for one process alone: the folder of a study, and that of a run, so that no two measure the same."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from archbench.errors import StorageError, UsageError, storing
from archbench.interruption import underway
from archbench.results.store import prepare_folder


@contextlib.contextmanager
def locked(folder: Path, step: str = "Wait for it, or choose another folder with --out") -> Iterator[None]:
    """Within this context the folder, created if missing, belongs to this process alone; death releases it.

    Args:
        step: what the user can do if another process has it.

    Raises:
        StorageError: it cannot be made or written, or its file system has no locks.
        UsageError: another process has it; the message names the process.
    """
    import filelock

    prepare_folder(folder)
    owner = folder / ".lock-owner"
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise UsageError(str(folder), f"another process is measuring in it ({_written(owner)})", step) from None
    except (OSError, NotImplementedError) as error:
        cause = f"it cannot be locked ({getattr(error, 'strerror', None) or error})"
        raise StorageError(str(folder), cause, "Choose a folder on another file system with --out") from error
    try:
        with storing(str(owner), step):
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        with underway():
            yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            owner.unlink(missing_ok=True)
        lock.release()


def _written(owner: Path) -> str:
    """Who has the lock; it writes that just after it has got it."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            if text := owner.read_text("utf-8", "replace")[:200]:
                return text
        time.sleep(0.05)
    return "which has not said who it is"
