"""Child processes that end when they should: with their parent, in time, and with all that they started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, however it dies: no orphan goes on burning the machine."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_group(leader: int) -> None:
    """Kill what is left of the group that process ``leader`` began (``Popen(process_group=0)``)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
