"""A folder for one process alone, so that two equal commands do not measure at the same time."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from archbench.errors import UsageError
from archbench.results.store import prepare_folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within this context the folder, created if missing, belongs to this process alone; death releases it.

    Raises:
        StorageError: it cannot be made or written.
        UsageError: another process has it; the message names the process.
    """
    prepare_folder(folder)
    owner = folder / ".lock-owner"
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        who = f" ({owner.read_text()})" if owner.exists() else ""
        cause = f"another process is measuring in it{who}"
        raise UsageError(str(folder), cause, "Wait for it, or choose another folder with --out") from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
