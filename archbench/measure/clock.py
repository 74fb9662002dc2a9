"""The clock: events and a flushed L2 on a GPU, ``perf_counter_ns`` on a CPU.

Timed code reads the same on both::

    clock.flush()
    start = clock.mark()
    work()
    end = clock.mark()
    seconds = clock.seconds(start, end)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from archbench.errors import DeviceError

Mark = Any
"""A point in time; only the clock that made it can read it."""


class Clock(Protocol):
    """Marks points on the device's time line, without making the device wait."""

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


class CPUClock:
    """``time.perf_counter_ns``: monotonic, nanoseconds. Caches stay as earlier work left them."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def seconds(self, start: int, end: int) -> float:
        return (end - start) * 1e-9

    def synchronize(self) -> None:
        return None

    def flush(self) -> None:
        return None


class CUDAClock:
    """CUDA events on the current stream, resolution about 0.5 microseconds (CUDA Runtime API, cudaEventElapsedTime).

    Events are on the GPU's time line: the time between two includes waiting for the host to submit work.

    Args:
        device: a CUDA device.
        cuda: where ``Event``, ``current_stream``, ``synchronize`` and ``get_device_properties`` come from.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device = device
        self._cuda = cuda
        self._scratch: torch.Tensor | None = None

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
        if self._scratch is None:
            size = 2 * self._cuda.get_device_properties(self.device).L2_cache_size
            self._scratch = self._new_scratch(size)
        self._scratch.zero_()

    def _new_scratch(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)


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
    """Seconds that one call takes, after earlier work is done and the cache is flushed."""
    clock.flush()
    clock.synchronize()
    start = clock.mark()
    work()
    end = clock.mark()
    return clock.seconds(start, end)
