"""What every process that measures does first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from archbench.config import KernelConfig, RunConfig
from archbench.kernels.triton_guard import without_triton
from archbench.measure.machine import device_name, versions
from archbench.measure.malloc import tune_malloc
from archbench.phases.device import resolve_device
from archbench.phases.rows import Rows


@contextmanager
def measuring(phase: str, config: RunConfig | KernelConfig) -> Iterator[tuple[torch.device, Rows]]:
    """Allocator, threads and device as ``config`` says; the device, and rows that say what was set.

    Raises:
        DeviceError: there is no such device.
    """
    malloc = tune_malloc()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    rows = Rows(
        phase,
        dtype=config.dtype,
        malloc=malloc,
        threads=torch.get_num_threads(),
        device=device.type,
        device_name=device_name(device),
        **versions(),
    )
    # Torch's compiler, which an optimizer loads, would import Triton: memory that would be taken for the model's.
    with without_triton() if device.type == "cpu" else nullcontext():
        yield device, rows
