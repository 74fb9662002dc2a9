"""Bytes in tensors: the most at one time while something runs, beyond what there was before.

Unlike a process's resident set (:mod:`archbench.measure.memory`) it depends on nothing that ran earlier and on no
allocator's habits, so that two ways of computing one thing can be compared in one process. What libraries hold beside
torch's tensors (oneDNN's and cuBLAS's own buffers) is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile


def peak_extra_bytes(fn: Callable[[], object], device: torch.device, cuda: Any = torch.cuda) -> int:
    """The most bytes that ``fn`` has in tensors at one time, what it returns and what it needs on the way included.

    CUDA: what the caching allocator counts, in its blocks of 512 bytes. CPU: every allocation of torch's allocator, as
    its profiler reports them; those inside operators too.

    Args:
        fn: called once.
        device: where it computes.
        cuda: where ``synchronize``, ``reset_peak_memory_stats`` … come from.
    """
    if device.type == "cuda":
        cuda.synchronize(device)
        cuda.reset_peak_memory_stats(device)
        before = cuda.memory_allocated(device)
        result = fn()
        cuda.synchronize(device)
        del result
        return int(cuda.max_memory_allocated(device) - before)
    with profile(profile_memory=True) as recorded:
        result = fn()
    del result
    assert recorded.kineto_results is not None
    changes = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    present = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        present += event.nbytes()
        most = max(most, present)
    return most
