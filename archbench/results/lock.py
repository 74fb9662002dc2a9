"""A folder for one process alone, so that two of the same command do not measure beside each other."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from archbench.errors import UsageError
from archbench.results.store import prepare_folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if it is missing, for this process alone.

    Raises:
        StorageError: it cannot be made or written.
        UsageError: another process has it.
    """
    prepare_folder(folder)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            step = "Wait for it, or choose another folder with --out"
            raise UsageError(str(folder), "another process is measuring in it", step) from None
        yield
