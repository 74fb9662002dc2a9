"""How long a process has worked or waited for nothing, on a machine that others use too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

IDLE = 0.02
"""Share of a CPU below which a process that is not kept waiting does nothing."""


class OwnTime:
    """Seconds of a process and its descendants, without those in which a busy machine kept them waiting.

    While they work, the CPU time of the busiest thread counts: alone on its machine that is the wall time, however
    many threads there are. While they sleep, the wall time counts, so that a hang is as long as it is. On other
    systems than Linux it is the wall time.

    Args:
        process: its id; time counts from now on.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self._seconds = 0.0
        self._at = time.monotonic()
        self._cpu = {task: seconds for task, seconds, _ in _tasks(process)}

    def __call__(self) -> float:
        """Seconds since it was made; to be asked about once a second, for it judges all the time since the last."""
        now = time.monotonic()
        wall, self._at = now - self._at, now
        tasks = list(_tasks(self._process))
        worked = [seconds - self._cpu.get(task, 0.0) for task, seconds, _ in tasks]
        self._cpu = {task: seconds for task, seconds, _ in tasks}
        kept_waiting = any(state in "RD" for _, _, state in tasks)  # runs, waits for a CPU, or for a disk
        self._seconds += min(wall, max(worked)) if tasks and (kept_waiting or sum(worked) > IDLE * wall) else wall
        return self._seconds


def kept_waiting() -> float:
    """Seconds that this thread has stood ready while others had the CPUs; 0 where the system does not tell."""
    with suppress(OSError):  # nanoseconds worked, nanoseconds waited, turns
        return int(Path("/proc/thread-self/schedstat").read_text("utf-8").split()[1]) * 1e-9
    return 0.0


def _tasks(process: int) -> Iterator[tuple[tuple[int, int], float, str]]:
    """The threads of a process and its descendants: ids, CPU seconds and state (proc_pid_stat(5))."""
    if sys.platform != "linux":
        return
    ticks = os.sysconf("SC_CLK_TCK")
    left = [process]
    while left:
        parent = left.pop()
        for task in sorted(Path(f"/proc/{parent}/task").glob("*")):
            with suppress(OSError):  # it has just ended
                fields = (task / "stat").read_text("utf-8").rpartition(")")[2].split()
                yield (parent, int(task.name)), (int(fields[11]) + int(fields[12])) / ticks, fields[0]
                left += map(int, (task / "children").read_text("utf-8").split())
