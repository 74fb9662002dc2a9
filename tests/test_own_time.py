"""A limit counts what a process does or waits for, not that others keep it from the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from archbench.child.own_time import OwnTime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the wall time")

Start = Callable[[str], int]
SPIN = "while True: pass"
ON_ONE_CPU = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a Python program; returns its process id once it runs."""
    programs: list[subprocess.Popen[str]] = []

    def start(code: str) -> int:
        text = f"print(1, flush=True)\n{code}"
        programs.append(
            subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, process_group=0)
        )
        assert programs[-1].stdout is not None
        programs[-1].stdout.readline()
        return programs[-1].pid

    yield start
    for program in programs:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


def share(process: int, seconds: float = 0.6) -> float:
    """Own time as a share of the wall time."""
    own, begun = OwnTime(process), time.monotonic()
    time.sleep(seconds)
    return own() / (time.monotonic() - begun)


def test_a_hang_counts_as_long_as_it_takes(start: Start) -> None:
    assert share(start("import time; time.sleep(1000)")) > 0.95


def test_waiting_for_a_busy_cpu_does_not_count(start: Start) -> None:
    for _ in range(3):
        start(f"{ON_ONE_CPU}\n{SPIN}")
    waiting = start(f"{ON_ONE_CPU}\n{SPIN}")
    time.sleep(0.2)  # until all have moved to that CPU
    assert share(waiting) < 0.6


def test_what_it_starts_counts_and_each_second_once(start: Start) -> None:
    """A program that waits for three of its own on one CPU: its time is that of the one that has most."""
    parent = start(
        f"import time, os\nfor _ in range(3):\n  if os.fork() == 0:\n    {ON_ONE_CPU}\n    {SPIN}\ntime.sleep(9)"
    )
    time.sleep(0.2)
    assert 0 < share(parent) < 0.8
