# ruff: noqa: N802  (NVML's names)
"""The little of the module ``pynvml`` that archbench uses, of a GPU that a test makes up.

Put on the path under that name it binds one idle GPU, whose energy rises by :data:`WATTS` a second.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

WATTS = 100.0
NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0


class NVMLError(Exception): ...


class State:
    """What the GPU says; None: it does not support that."""

    def __init__(self) -> None:
        self.pids: list[int] | None = []
        self.ecc: int | None = 0
        self.reasons: int | None = 4
        self.mig: list[int] | None = [0, 0]
        self.millijoules: int | None = None
        self.handles: list[Any] = []


GPU = State()


def _or_error(value: Any) -> Any:
    if value is None:
        raise NVMLError("Not Supported")
    return value


def nvmlInit() -> None: ...


def nvmlDeviceGetHandleByIndex(index: int) -> str:
    if index > 1:
        raise NVMLError("Invalid Argument")
    GPU.handles.append(index)
    return f"GPU {index}"


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:
    GPU.handles.append(uuid)
    return uuid


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle: str) -> str:
    return f"whole of {handle}"


def nvmlDeviceGetMigMode(handle: str) -> Any:
    return _or_error(GPU.mig)


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid) for pid in _or_error(GPU.pids)]


def nvmlDeviceGetClockInfo(handle: str, kind: int) -> int:
    return {NVML_CLOCK_SM: 1980, NVML_CLOCK_MEM: 2619}[kind]


def nvmlDeviceGetPowerUsage(handle: str) -> int:
    return 71_500


def nvmlDeviceGetTemperature(handle: str, sensor: int) -> int:
    assert sensor == NVML_TEMPERATURE_GPU
    return 33


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: str) -> Any:
    """The name of older versions alone."""
    return _or_error(GPU.reasons)


def nvmlDeviceGetTotalEccErrors(handle: str, kind: int, since: int) -> Any:
    assert (kind, since) == (1, 0)
    return _or_error(GPU.ecc)


def nvmlDeviceGetTotalEnergyConsumption(handle: str) -> int:
    return int(1e3 * WATTS * time.monotonic()) if GPU.millijoules is None else GPU.millijoules
