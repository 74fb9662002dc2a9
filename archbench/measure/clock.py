"""The clock: events and a flushed L2 on a GPU, ``perf_counter_ns`` on a CPU.

Timed code reads the same on both::

    clock.flush()
    start = clock.mark()
    work()
    end = clock.mark()
    seconds = clock.seconds(start, end)

What the host takes to submit work is no part of the work's own time on a GPU: :func:`submitted` keeps the GPU busy
meanwhile, and asks it afterwards whether it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from archbench.errors import DeviceError

Mark = Any
"""A point in time; only the clock that made it can read it."""

Result = TypeVar("Result")

FIRST_HOLD = 0.5e-3
"""Seconds for which a GPU is kept busy at first; submitting a Triton kernel took the host 0.23 to 0.56 ms."""

LONGEST_HOLD = 64e-3
"""Seconds after which work counts as one that waits for the host whatever the hold, as where it reads from the GPU."""

_CYCLES_PER_SECOND = 2e9
"""Of a GPU's clock, about: whether a hold was long enough is asked, not computed."""


class Clock(Protocol):
    """Marks points on the device's time line, without making the device wait.

    Attributes:
        asynchronous: whether the device works while the host goes on.
    """

    asynchronous: bool

    def mark(self) -> Mark:
        """Now: after all work submitted so far, on the device's own time line."""
        ...

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds between two marks; waits for the device to reach ``end``."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done all work submitted so far."""
        ...

    def flush(self) -> None:
        """Empty the cache that would make a repeat faster than the first time; before a mark, never between two."""
        ...

    def reserve(self) -> int:
        """Take the memory that :meth:`flush` needs, if it is not taken yet; returns its bytes."""
        ...

    def hold(self) -> None:
        """Keep the device busy for a while, so that what the host submits meanwhile does not wait for the host."""
        ...

    def lengthen(self) -> bool:
        """Make :meth:`hold` twice as long; False if it is as long as it gets."""
        ...

    def is_before(self, mark: Mark) -> bool:
        """Whether the device has yet to reach ``mark``: what was submitted since then has waited for nothing."""
        ...


class CPUClock:
    """``time.perf_counter_ns``: monotonic, nanoseconds. Caches stay as earlier work left them."""

    asynchronous = False

    def mark(self) -> int:
        return time.perf_counter_ns()

    def seconds(self, start: int, end: int) -> float:
        return (end - start) * 1e-9

    def synchronize(self) -> None:
        return None

    def flush(self) -> None:
        return None

    def reserve(self) -> int:
        return 0

    def hold(self) -> None:
        return None

    def lengthen(self) -> bool:
        return False

    def is_before(self, mark: int) -> bool:
        return True


class CUDAClock:
    """CUDA events on the current stream, resolution about 0.5 microseconds (CUDA Runtime API, cudaEventElapsedTime).

    Events are on the GPU's time line: the time between two includes waiting for the host to submit work.

    Args:
        device: a CUDA device.
        cuda: where ``Event``, ``current_stream``, ``synchronize``, ``get_device_properties``, ``device`` and ``_sleep``
            come from.
    """

    asynchronous = True

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device = device
        self._cuda = cuda
        self._scratch: torch.Tensor | None = None
        self._hold_seconds = FIRST_HOLD

    def mark(self) -> Mark:
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self.device))
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds * 1e-3

    def synchronize(self) -> None:
        self._cuda.synchronize(self.device)

    def flush(self) -> None:
        """Overwrite a buffer of twice the L2, so that no earlier data are left in it."""
        self._reserved().zero_()

    def reserve(self) -> int:
        return self._reserved().nbytes

    def _reserved(self) -> torch.Tensor:
        if self._scratch is None:
            size = 2 * self._cuda.get_device_properties(self.device).L2_cache_size
            self._scratch = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._scratch

    def hold(self) -> None:
        """Start a kernel that only counts cycles (``torch.cuda._sleep``)."""
        with self._cuda.device(self.device):
            self._cuda._sleep(int(self._hold_seconds * _CYCLES_PER_SECOND))

    def lengthen(self) -> bool:
        longer = 2 * self._hold_seconds
        if longer > LONGEST_HOLD:
            return False
        self._hold_seconds = longer
        return True

    def is_before(self, mark: Mark) -> bool:
        return not mark.query()


def clock_for(device: torch.device | str) -> Clock:
    """The clock of a device.

    Raises:
        DeviceError: there is no clock for that kind of device, or the device is not there.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return CPUClock()
    if device.type != "cuda":
        raise DeviceError(f"device {device}", "archbench has no clock for it", "Use --device cpu or --device cuda")
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device {device}", "torch finds no CUDA GPU", "Use --device cpu, or install a CUDA build of torch"
        )
    return CUDAClock(device)


def seconds_of(work: Callable[[], object], clock: Clock) -> float:
    """Seconds that one call takes, the host's part included, after earlier work is done and the cache is flushed."""
    clock.flush()
    clock.synchronize()
    start = clock.mark()
    work()
    end = clock.mark()
    return clock.seconds(start, end)


@dataclass(frozen=True)
class Submission:
    """Work between two marks, as :func:`submitted` timed it.

    Attributes:
        start, end: marks before and after it.
        host_seconds: what the host took to submit it; on a CPU, to do it.
        gapless: whether the device found all of it waiting. If not, the time between the marks may be the host's.
    """

    start: Mark
    end: Mark
    host_seconds: float
    gapless: bool


def submitted(work: Callable[[], Result], clock: Clock) -> tuple[Result, Submission]:
    """Call ``work`` while the device is kept busy by a hold and by flushing its cache; its result, and its marks.

    The device reaches the first mark when all is submitted, if the hold is long enough: the time between the marks does
    then not depend on the host. Where :attr:`Submission.gapless` is false, lengthen the hold and call again.
    """
    clock.synchronize()
    clock.hold()
    clock.flush()
    start = clock.mark()
    began = time.perf_counter_ns()
    result = work()
    host_seconds = (time.perf_counter_ns() - began) * 1e-9
    end = clock.mark()
    return result, Submission(start, end, host_seconds, clock.is_before(start))


def device_seconds_of(work: Callable[[], object], clock: Clock) -> float:
    """Seconds that the device takes for one call, with a flushed cache and without the host's time to submit it.

    Work that makes the host wait for the device cannot be submitted ahead; the host's time is then included.
    """
    while True:
        _, one = submitted(work, clock)
        if one.gapless or not clock.lengthen():
            return clock.seconds(one.start, one.end)
