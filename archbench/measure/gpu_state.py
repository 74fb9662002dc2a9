"""One GPU as NVIDIA's management library (NVML) sees it: who uses it, its clocks, power, heat, errors and energy.

The package nvidia-ml-py binds NVML, as the module ``pynvml``, which is imported here and nowhere else. It is not
required: without it, on other GPUs and where the library is missing, :func:`find_gpu` says why. This loads no torch.

Source: nvml.h, NVIDIA's NVML API Reference Guide.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from archbench.measure.machine import gpu_id

ENERGY_STEP = 0.1
"""Seconds between two values of the energy counter, at most: Volta to Hopper update theirs every 20 to 100 ms."""

_UNCORRECTED, _SINCE_BOOT = 1, 0  # NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC


@dataclass(frozen=True)
class GPUState:
    """A GPU at one moment; None where its driver does not say.

    Attributes:
        others: PIDs of other processes that compute on it.
        sm_hertz, memory_hertz: clocks.
        watts: power, of the whole board.
        celsius: temperature of the chip.
        slowed_by: why the clocks are not higher, NVML's bits (``nvmlClocksEventReasons``); 0: nothing.
        ecc_errors: errors in memory since the last start that could not be corrected.
        mig: whether it is a slice of a GPU, or a GPU that is cut into slices (MIG).
    """

    others: tuple[int, ...] | None = None
    sm_hertz: float | None = None
    memory_hertz: float | None = None
    watts: float | None = None
    celsius: float | None = None
    slowed_by: int | None = None
    ecc_errors: int | None = None
    mig: bool | None = None


class GPU:
    """A GPU that NVML knows.

    Args:
        nvml: the module ``pynvml``, initialised.
        own: NVML's handle of what computes: a GPU, or a slice of one.
        whole: of the GPU.
    """

    def __init__(self, nvml: Any, own: Any, whole: Any) -> None:
        self._nvml, self._own, self._whole = nvml, own, whole
        mode = self._read("nvmlDeviceGetMigMode", whole)
        self._mig = True if own is not whole else None if mode is None else bool(mode[0])

    def state(self, ours: Collection[int] = ()) -> GPUState:
        """Its state now.

        Args:
            ours: PIDs that are no other process's. In a container NVML may tell PIDs of the host, so take the state
                while no process of ours computes.
        """
        nvml, whole = self._nvml, self._whole
        running = self._read("nvmlDeviceGetComputeRunningProcesses", self._own)
        megahertz = [
            self._read("nvmlDeviceGetClockInfo", whole, kind) for kind in (nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM)
        ]
        sm, memory = (None if value is None else value * 1e6 for value in megahertz)
        milliwatts = self._read("nvmlDeviceGetPowerUsage", whole)
        # The name up to driver 530, which NVIDIA removes with CUDA 14, and the one since.
        reasons = self._read("nvmlDeviceGetCurrentClocksEventReasons", whole)
        if reasons is None:
            reasons = self._read("nvmlDeviceGetCurrentClocksThrottleReasons", whole)
        return GPUState(
            others=None if running is None else tuple(sorted({one.pid for one in running} - set(ours))),
            sm_hertz=sm,
            memory_hertz=memory,
            watts=None if milliwatts is None else milliwatts * 1e-3,
            celsius=self._read("nvmlDeviceGetTemperature", whole, nvml.NVML_TEMPERATURE_GPU),
            slowed_by=reasons,
            ecc_errors=self._read("nvmlDeviceGetTotalEccErrors", whole, _UNCORRECTED, _SINCE_BOOT),
            mig=self._mig,
        )

    def joules(self) -> float | None:
        """Energy of the whole board since its driver was loaded; None where nothing counts it, or too much."""
        if self._mig:
            return None
        millijoules = self._read("nvmlDeviceGetTotalEnergyConsumption", self._whole)
        return None if millijoules is None else millijoules * 1e-3

    @property
    def uncounted(self) -> str:
        """Why :meth:`joules` is None."""
        if self._mig:
            return "the counter is the whole GPU's, which is cut into slices (MIG)"
        return "this GPU has no energy counter (NVIDIA's have since Volta)"

    def _read(self, function: str, *arguments: Any) -> Any:
        call: Callable[..., Any] | None = getattr(self._nvml, function, None)
        if call is None:  # an older nvidia-ml-py
            return None
        try:
            return call(*arguments)
        except self._nvml.NVMLError:  # not supported by this GPU or driver, or not permitted
            return None


def find_gpu(device: str, environment: Mapping[str, str] = os.environ, module: str = "pynvml") -> GPU | str:
    """The GPU that torch calls ``device``, or why it cannot be watched.

    Args:
        device: ``cuda`` or ``cuda:N``.
        environment: where ``CUDA_VISIBLE_DEVICES`` may be.
        module: that binds NVML.
    """
    try:
        nvml: Any = import_module(module)
    except ImportError:
        return "the package nvidia-ml-py is not installed (pip install 'archbench[gpu]')"
    try:
        nvml.nvmlInit()
        name = gpu_id(device, environment)
        by_uuid, by_index = nvml.nvmlDeviceGetHandleByUUID, nvml.nvmlDeviceGetHandleByIndex
        own = by_index(int(name)) if name.isdecimal() else by_uuid(name)
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(own) if name.startswith("MIG-") else own
        return GPU(nvml, own, whole)
    except (nvml.NVMLError, AttributeError) as error:
        return f"NVML does not know it ({error})"
