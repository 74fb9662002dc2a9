"""What only the process that measures can tell of its device: clocks, power and heat while it works, and its energy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch

from archbench.measure.energy import energy_used
from archbench.measure.gpu_state import GPU, GPUState, find_gpu
from archbench.presentation.terminal import echo
from archbench.runs.rows import Rows

ENVIRONMENT = "environment"
"""The phase of these rows; the process that starts phases adds its own to them (:mod:`archbench.runs.phase`)."""

_READ = ("sm_hertz", "memory_hertz", "watts", "celsius", "slowed_by")


@contextmanager
def device_watched(device: torch.device, rows: Rows, *, first: bool, quiet: bool) -> Iterator[None]:
    """Add rows of the block in this context: the GPU at its begin and end, and the joules of the device.

    A CPU without a counter that may be read has none of these rows; a GPU's are null, and a line says why.

    Args:
        first: False for a rank that is not the first: it adds its GPU's joules alone.
    """
    on_gpu = device.type == "cuda"
    gpu = find_gpu(str(device)) if on_gpu else ""
    before = gpu.state() if isinstance(gpu, GPU) else GPUState()
    with energy_used(device) as energy:
        yield
    after = gpu.state() if isinstance(gpu, GPU) else GPUState()  # while this process still has its context
    if on_gpu and first:
        for name in _READ:
            for when, state in (("before", before), ("after", after)):
                rows.add(f"gpu_{name}_{when}", asdict(state)[name], phase=ENVIRONMENT)
    if on_gpu or (first and energy.countable):
        rows.add("joules", energy.joules, phase=ENVIRONMENT)
    if energy.reason and (on_gpu or energy.countable) and not quiet:
        echo(f"phase {rows.phase}: its energy is unknown: {energy.reason}", error=True)
