"""Energy of a device while something runs on it: NVML's counter of a GPU, RAPL's of a CPU under Linux.

Both count all that the device does, for anyone: the GPU's whole board with its memory, the CPU's packages and, where
it is counted apart, their memory. What the rest of the machine draws is not in it.

RAPL's counters (Linux, ``Documentation/power/powercap``) are in ``/sys/class/powercap``; since 2020 most systems let
only root read them. They start again from 0 after some hundred kilojoules, minutes at full load, so they are also read
once a minute.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from archbench.measure.gpu_state import ENERGY_STEP, GPU, find_gpu

POWERCAP = Path("/sys/class/powercap")

LEAST_STEPS = 10
"""Values of a counter that a measurement has to span: it is off by at most one of them, a tenth."""

RAPL_STEP = 1e-3
"""Seconds between two values of RAPL's counters."""

_READ_EVERY = 60.0


class Counter(Protocol):
    """Counts joules.

    Attributes:
        step: seconds between two of its values.
    """

    step: float

    def joules(self) -> float:
        """Since some moment."""
        ...


class _GPUCounter:
    step = ENERGY_STEP

    def __init__(self, gpu: GPU) -> None:
        self._gpu = gpu

    def joules(self) -> float:
        value = self._gpu.joules()
        return float("nan") if value is None else value


class RAPLCounter:
    """The sum of several of RAPL's zones.

    Args:
        zones: their folders, with ``energy_uj`` and ``max_energy_range_uj``, microjoules.

    Raises:
        OSError, ValueError: a file cannot be read.
    """

    step = RAPL_STEP

    def __init__(self, zones: list[Path]) -> None:
        self._ranges = {zone: int((zone / "max_energy_range_uj").read_text("utf-8")) for zone in zones}
        self._last = {zone: self._read(zone) for zone in zones}
        self._total = 0
        self._lock = threading.Lock()

    def joules(self) -> float:
        with self._lock:
            for zone, last in self._last.items():
                now = self._read(zone)
                self._total += now - last if now >= last else now - last + self._ranges[zone]
                self._last[zone] = now
            return self._total * 1e-6

    @staticmethod
    def _read(zone: Path) -> int:
        return int((zone / "energy_uj").read_text("utf-8"))


@cache
def counter_of(device: str, powercap: Path = POWERCAP) -> Counter | str:
    """The energy counter of a device, as torch names it, or why there is none."""
    if device.startswith("cuda"):
        gpu = find_gpu(device)
        if isinstance(gpu, str):
            return gpu
        return gpu.uncounted if gpu.joules() is None else _GPUCounter(gpu)
    if not device.startswith("cpu"):
        return f"archbench knows no energy counter of {device} devices"
    zones = [folder for folder in sorted(powercap.glob("intel-rapl:*")) if _counts(folder)]
    if not zones:
        return f"{powercap} has no counters of RAPL"
    try:
        return RAPLCounter(zones)
    except (OSError, ValueError) as error:
        return f"RAPL's counters cannot be read ({error})"


def _counts(zone: Path) -> bool:
    """Whether it is a package, or the memory beside one; cores and graphics are in their package already."""
    try:
        name = (zone / "name").read_text("utf-8").strip()
    except OSError:
        return False
    return name.startswith("package-") or (
        name == "dram" and re.fullmatch(r"intel-rapl:\d+:\d+", zone.name) is not None
    )


@dataclass
class Energy:
    """Energy of the block under :func:`energy_used`; set when the block ends.

    Attributes:
        joules: of the device, for anyone; None: unknown.
        reason: why it is unknown, or "".
        countable: whether the device has a counter.
    """

    joules: float | None = None
    reason: str = ""
    countable: bool = False


@contextmanager
def energy_used(device: object, counter: Counter | str | None = None) -> Iterator[Energy]:
    """Measure the energy of a block, from the end of the device's earlier work to the end of the block's.

    Args:
        device: what works in the block.
        counter: None for that of :func:`counter_of`.
    """
    name = str(device)
    source = counter_of(name) if counter is None else counter
    if isinstance(source, str):
        yield Energy(reason=source)
        return
    energy, stop = Energy(countable=True), threading.Event()
    reader = threading.Thread(target=_keep_reading, args=(source, stop), name="archbench energy", daemon=True)
    if isinstance(source, RAPLCounter):
        reader.start()
    try:
        _wait_for(name)
        start, began = source.joules(), time.monotonic()
        yield energy
        _wait_for(name)
        seconds, used = time.monotonic() - began, source.joules() - start
    finally:
        stop.set()
    if seconds < LEAST_STEPS * source.step:
        energy.reason = (
            f"{seconds:.2g} s are too short for a counter that changes every {source.step:g} s: "
            f"it takes {LEAST_STEPS * source.step:g} s"
        )
    elif not used > 0:
        energy.reason = "the counter did not move"
    else:
        energy.joules = used


def _keep_reading(counter: Counter, stop: threading.Event) -> None:
    while not stop.wait(_READ_EVERY):
        counter.joules()


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(torch.device(device))


@cache
def idle_watts(device: str) -> float | None:
    """Power of the device while this process does nothing, measured once a process; None: unknown.

    Takes two seconds on a GPU, less on a CPU, and no time without a counter.
    """
    counter = counter_of(device)
    if isinstance(counter, str):
        return None
    start, began = counter.joules(), time.monotonic()
    time.sleep(max(0.5, 2 * LEAST_STEPS * counter.step))
    used, seconds = counter.joules() - start, time.monotonic() - began
    return used / seconds if used > 0 else None
