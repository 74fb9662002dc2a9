"""A file in the study's folder that stands for an order: when it goes, the order has the time of an interruption.

Engines that kill at once what they take back leave no time to write a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from archbench.errors import LauncherError
from archbench.results.claims import own_place


def permits_of(folder: Path) -> Path:
    """A new place in the study's folder for the permits of this process's orders, which is not made yet."""
    return own_place(folder, "orders")


LOOK = 0.25
"""Seconds between two looks of an order at its permit."""


@contextlib.contextmanager
def permitted(permit: Path) -> Iterator[None]:
    """Within this context this process is interrupted, by SIGTERM, when the file goes.

    Raises:
        LauncherError: it is not there: this machine sees another folder.
    """
    if not permit.exists():
        step = "Mount the study's folder there, or leave that host out"
        raise LauncherError(f"host {socket.gethostname()}", f"it does not see {permit.parent.parent}", step)
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            if not permit.exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()
