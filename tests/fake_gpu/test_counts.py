"""The counting libraries themselves: what is counted is what was asked for."""

from __future__ import annotations

import torch
from counts import by_name, counted


def test_kernels_products_copies_and_waits_are_counted_apart() -> None:
    x = torch.randn(8, 8, device="cuda", dtype=torch.bfloat16)
    there = torch.zeros(8, 8)
    x @ x
    torch.cuda.synchronize()

    seen = counted(lambda: (x @ x).relu_())
    assert (seen.launches, seen.products, seen.syncs, seen.to_device) == (1, 1, 0, 0)
    assert sum("relu" in name or "clamp" in name for name in by_name()) == 1

    seen = counted(lambda: there.to("cuda"))
    assert (seen.to_device, seen.bytes_to_device) == (1, 256)
    assert seen.syncs == 1, "a copy from pageable memory waits"

    seen = counted(lambda: there.pin_memory().to("cuda", non_blocking=True))
    assert seen.syncs == 0
    assert counted(x.sum().item).to_host == 1
