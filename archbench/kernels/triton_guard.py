"""Keeps Triton out of processes that launch none of its kernels.

Torch checks for Triton by importing it, which takes 0.15 s and 70 MiB: memory that a measurement on a CPU would
attribute to the model. The FLOP counter does so, and the compiler, which optimizers, dispatch modes and custom
operators load even if nothing is compiled.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch


@contextmanager
def without_triton() -> Iterator[None]:
    """Within this context importing triton fails as if it were not installed, unless it is already loaded.

    Torch remembers the failure: a process that will compile for a GPU must not import torch's compiler here.
    """
    if "triton" in sys.modules:
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]  # to Python's import system: not installed
    try:
        yield
    finally:
        del sys.modules["triton"]


@cache
def row_kernels_run(device: torch.device) -> bool:
    """Whether the Triton kernels that work row by row run on this device: GPUs with bfloat16, where Triton is."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def flop_counter() -> ModuleType:
    """``torch.utils.flop_counter``, imported without Triton, which it would load only to recognise Triton's kernels.

    FLOPs are counted on the meta device, where no such kernel runs. The module then accepts no formula for a bare
    ``triton.jit`` function, but still counts operators, such as those of :func:`archbench.kernels.causal_attention`.
    """
    log = logging.getLogger("torch.utils.flop_counter")
    disabled, log.disabled = log.disabled, True  # CUDA builds of torch would warn that Triton was not found
    try:
        with without_triton():
            import torch.utils.flop_counter
    finally:
        log.disabled = disabled
    return torch.utils.flop_counter
