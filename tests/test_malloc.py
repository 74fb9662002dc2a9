"""The tuned allocator keeps freed memory, so that big tensors soon cause no page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from archbench.measure.malloc import tune_malloc
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(50_000_000, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sum(faults() for _ in range(5)))
print(tune_malloc())
# Small blocks that come to lie in freed space make the heap grow a few times before it is large enough.
for _ in range(10):
    faults()
print(sum(faults() for _ in range(5)))
"""
"""In a process of its own, which keeps the setting."""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_big_tensors_allocated_again_and_again_cause_no_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    untouched, setting, tuned = done.stdout.splitlines()
    assert setting.startswith("glibc: ")
    # 50 MB are 12,207 pages of 4 KiB, or 24 of 2 MiB where the kernel makes them huge.
    assert int(untouched) >= 5 * 20
    assert int(tuned) < int(untouched) / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_an_allocator_in_glibcs_place_is_named_and_left_alone() -> None:
    code = "from archbench.measure.malloc import tune_malloc; print(tune_malloc())"
    environment = {**os.environ, "LD_PRELOAD": "/nowhere/libjemalloc.so.2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "preloaded: libjemalloc.so.2"
