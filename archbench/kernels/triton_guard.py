"""Triton kept out of processes that launch none of its kernels.

Torch finds out whether it has Triton by importing it, which takes 0.15 s and 70 MiB: memory that measurements on a CPU
would report as a model's. Its FLOP counter asks, and so does its compiler, which is loaded by optimizers, dispatch
modes and custom operators, whether or not anything is compiled.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without_triton() -> Iterator[None]:
    """Within this context importing triton fails as where it is not installed, unless it is loaded already.

    Torch remembers what it found: a process that will compile for a GPU must not import torch's compiler in here.
    """
    if "triton" in sys.modules:
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]  # what Python's import system takes for "there is none"
    try:
        yield
    finally:
        del sys.modules["triton"]


def flop_counter() -> ModuleType:
    """``torch.utils.flop_counter``, which importing would load Triton, if only to recognise its kernels.

    FLOPs are counted on the meta device, where none of them runs. A counter that was first imported here takes no
    formula for a bare ``triton.jit`` function; operators, as :func:`archbench.kernels.causal_attention`'s, it counts.
    """
    log = logging.getLogger("torch.utils.flop_counter")
    disabled, log.disabled = log.disabled, True  # CUDA builds of torch would warn that Triton was not found
    try:
        with without_triton():
            import torch.utils.flop_counter
    finally:
        log.disabled = disabled
    return torch.utils.flop_counter
