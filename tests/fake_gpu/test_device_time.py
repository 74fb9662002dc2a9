"""What is timed on a GPU is the GPU's own time, and what is weighed is the model's own memory."""

from __future__ import annotations

import gc

import torch
from counts import by_name, counted

from archbench.measure.clock import CUDAClock, submitted
from archbench.measure.memory import PeakMemory, peak_memory
from archbench.measure.steady import repeat_until_steady

DEVICE = torch.device("cuda:0")


def test_a_spinning_kernel_and_the_flush_are_queued_before_what_is_timed() -> None:
    clock, x = CUDAClock(DEVICE), torch.randn(8, 8, device=DEVICE, dtype=torch.bfloat16)
    submitted(lambda: x @ x, clock)
    seen = counted(lambda: submitted(lambda: x @ x, clock))
    assert seen.products == 1
    assert sum(count for name, count in by_name().items() if "spin" in name) == 1
    assert seen.events == 2
    assert seen.syncs == 1, "the host waits before it begins, and no more"


def test_the_buffer_that_flushes_the_cache_is_no_part_of_a_phases_peak() -> None:
    gc.collect()
    torch.cuda.empty_cache()  # or the weights lie in a larger block that earlier work left
    earlier = torch.cuda.memory_reserved(DEVICE)  # what tests before this one keep
    weights = torch.zeros(2**20, device=DEVICE)  # 4 MiB

    def peak(clock: CUDAClock | None) -> PeakMemory:
        fresh = CUDAClock(DEVICE)
        with peak_memory(DEVICE, clock=clock) as memory:
            repeat_until_steady(lambda: weights * 2, clock or fresh, warmup=1, repeats=1, max_warmup=1)
        return memory

    L2 = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    assert L2 > 0
    seen, unaware = peak(CUDAClock(DEVICE)), peak(None)
    assert seen.baseline_bytes is not None
    assert seen.peak_bytes == seen.baseline_bytes + 2**22
    assert seen.reserved_bytes is not None
    assert seen.reserved_bytes < earlier + 2 * L2
    assert unaware.peak_bytes is not None
    assert unaware.peak_bytes >= seen.baseline_bytes + 2 * L2
