"""Peak memory: of a phase as its process sees it, and in tensors as torch counts them.

:func:`peak_memory` is a phase's: on a GPU what torch's allocator counts since its peaks were reset, on a CPU under
Linux the process's ``VmHWM`` (proc_pid_status(5)) after resetting it by writing 5 to ``/proc/self/clear_refs``
(proc_pid_clear_refs(5)). Elsewhere a peak cannot be reset: what the system counts since the process began (macOS:
``ru_maxrss`` of getrusage(2); Windows: ``PeakWorkingSetSize``) is the phase's peak if it has grown in the phase, and
otherwise, as on other devices, the value is None, with the reason. On Linux ``ru_maxrss`` would not do: a process
inherits it from its parent across ``exec``.

:func:`peak_extra_bytes` counts bytes in tensors alone. It does not depend on what ran earlier or on an allocator's
habits, so that two ways of computing one thing can be compared in one process. It misses what libraries hold beside
torch's tensors (the buffers of oneDNN and cuBLAS).
"""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.autograd.profiler import profile

from archbench.measure.clock import Clock

_RESET_SLACK = 0.02
"""How far a reset peak may lie above the resident set: the kernel counts pages in batches, CPU by CPU."""


@dataclass
class PeakMemory:
    """Memory of the block under :func:`peak_memory`; the peaks are set when the block ends.

    Attributes:
        baseline_bytes: in use when the block began. CPU: resident set of the process, with code and libraries;
            CUDA: bytes in tensors.
        peak_bytes: most in use since then, baseline included.
        reserved_bytes: most that the CUDA allocator held, in tensors or not; None on a CPU.
        reason: why a value is None, or "".
    """

    baseline_bytes: int | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    reason: str = ""


@contextmanager
def peak_memory(
    device: torch.device | str, proc: Path = Path("/proc/self"), *, clock: Clock | None = None
) -> Iterator[PeakMemory]:
    """Measure the peak memory of a block; not nested, and in a fresh process for a clean start.

    A CPU's baseline holds whatever the process's allocator kept from earlier work, which is why each phase has a
    process of its own.

    Args:
        device: where the block's tensors live.
        proc: where Linux describes this process.
        clock: that times work in the block. What it needs to flush a GPU's cache is no part of the peak.
    """
    device = torch.device(device)
    gc.collect()
    memory = PeakMemory()
    if device.type == "cuda":
        beside = 0 if clock is None else clock.reserve()
        _begin_cuda(memory, device, beside)
        yield memory
        _end_cuda(memory, device, beside)
    elif device.type == "cpu" and sys.platform != "linux":
        memory.baseline_bytes, before = psutil.Process().memory_info().rss, _peak_since_start()
        yield memory
        if (peak := _peak_since_start()) > before:
            memory.peak_bytes = peak
        else:
            memory.reason = f"its process had used {before} bytes before, and this system does not reset that peak"
    elif device.type == "cpu":
        _begin_cpu(memory, proc)
        yield memory
        if memory.baseline_bytes is not None:
            memory.peak_bytes = _status_bytes(proc, "VmHWM")
    else:
        memory.reason = f"archbench cannot read the peak memory of {device.type} devices"
        yield memory


def _begin_cuda(memory: PeakMemory, device: torch.device, beside: int, cuda: Any = torch.cuda) -> None:
    cuda.synchronize(device)
    cuda.empty_cache()
    cuda.reset_peak_memory_stats(device)
    memory.baseline_bytes = cuda.memory_allocated(device) - beside


def _end_cuda(memory: PeakMemory, device: torch.device, beside: int, cuda: Any = torch.cuda) -> None:
    """``beside``: bytes of the measurement itself, which are there from the beginning of the block to its end."""
    cuda.synchronize(device)
    memory.peak_bytes = cuda.max_memory_allocated(device) - beside
    memory.reserved_bytes = cuda.max_memory_reserved(device) - beside


def _peak_since_start() -> int:
    """Most bytes that this process has had resident."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _begin_cpu(memory: PeakMemory, proc: Path) -> None:
    try:
        (proc / "clear_refs").write_text("5", "utf-8")
        resident, peak = _status_bytes(proc, "VmRSS"), _status_bytes(proc, "VmHWM")
    except OSError as error:
        memory.reason = f"{proc} does not tell or reset the peak of this process ({error.strerror})"
        return
    if peak > resident * (1 + _RESET_SLACK):
        memory.reason = f"writing to {proc / 'clear_refs'} did not reset VmHWM"
        return
    memory.baseline_bytes = resident


def _status_bytes(proc: Path, field: str) -> int:
    for line in (proc / "status").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            kibibytes, unit = value.split()
            assert unit == "kB"
            return int(kibibytes) * 1024
    raise OSError(errno.ENOENT, f"no {field} in {proc / 'status'}")


def most_memory(processes: Iterable[PeakMemory]) -> PeakMemory:
    """That of the process that needed most."""
    return max(processes, key=lambda one: one.peak_bytes or 0)


def peak_extra_bytes(fn: Callable[[], object], device: torch.device, cuda: Any = torch.cuda) -> int:
    """The most bytes that ``fn`` has in tensors at one time: what it returns and what it needs on the way.

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
