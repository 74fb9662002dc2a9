"""Peak memory belongs to the phase that caused it: not to the one before, and not to the parent process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from archbench.measure import memory
from archbench.measure.memory import PeakMemory, peak_memory

MB = 10**6
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's VmHWM")


READINGS = """
import resource, torch
from archbench.measure.memory import peak_memory
with peak_memory("cpu") as idle:
    pass
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with peak_memory("cpu") as used:
    touched = torch.ones(200_000_000, dtype=torch.uint8)
    del touched
with peak_memory("cpu") as later:
    pass
for reading in (idle, used, later):
    print(reading.baseline_bytes, reading.peak_bytes)
print(most)
"""
"""In a process of its own: freed memory that the allocator keeps, as after a run, would be no part of a peak."""

FAT = 1000 * MB


@pytest.fixture(scope="module")
def readings() -> list[list[int]]:
    """Baseline and peak of three phases in a child of a parent that holds :data:`FAT` bytes, and its ru_maxrss."""
    fat = np.ones(FAT, dtype=np.uint8)
    done = subprocess.run([sys.executable, "-c", READINGS], capture_output=True, text=True, check=True)
    assert fat.nbytes == FAT
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


@needs_linux
def test_memory_used_and_freed_is_in_its_phases_peak_and_in_no_later_one(readings: list[list[int]]) -> None:
    _, (baseline, peak), (later_baseline, later_peak), _ = readings
    # The kernel counts resident pages in batches, CPU by CPU: a few percent.
    assert peak - baseline == pytest.approx(200 * MB, rel=0.05)
    assert later_peak - later_baseline < 10 * MB


@needs_linux
def test_a_child_of_a_fat_parent_is_not_polluted_though_ru_maxrss_is(readings: list[list[int]]) -> None:
    (baseline, peak), *_, (most,) = readings
    assert peak < 0.8 * FAT
    assert peak - baseline < 10 * MB
    assert most > FAT, "should this fail, ru_maxrss has become honest, and the reason to avoid it is gone"


def test_where_the_system_cannot_reset_the_peak_there_is_a_reason_and_no_value(tmp_path: Path) -> None:
    with peak_memory("cpu", proc=tmp_path / "missing") as reading:
        pass
    assert (reading.baseline_bytes, reading.peak_bytes) == (None, None)
    assert "No such file" in reading.reason


def test_a_reset_that_has_no_effect_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "clear_refs").write_text("")
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  900000 kB\nVmRSS:\t  100000 kB\n")
    with peak_memory("cpu", proc=tmp_path) as reading:
        pass
    assert reading.peak_bytes is None
    assert "did not reset VmHWM" in reading.reason


def test_a_gpus_peaks_are_reset_before_and_read_after_all_work_is_done() -> None:
    log: list[str] = []
    cuda = SimpleNamespace(
        synchronize=lambda device: log.append("synchronize"),
        empty_cache=lambda: log.append("empty_cache"),
        reset_peak_memory_stats=lambda device: log.append("reset"),
        memory_allocated=lambda device: 10,
        max_memory_allocated=lambda device: 30,
        max_memory_reserved=lambda device: 40,
    )
    reading = PeakMemory()
    memory._begin_cuda(reading, torch.device("cuda"), 4, cuda)
    memory._end_cuda(reading, torch.device("cuda"), 4, cuda)
    assert (reading.baseline_bytes, reading.peak_bytes, reading.reserved_bytes) == (6, 26, 36)
    assert log == ["synchronize", "empty_cache", "reset", "synchronize"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_peak_is_the_largest_sum_of_living_tensors() -> None:
    with peak_memory("cuda") as reading:
        x = torch.empty(64 * MB, dtype=torch.uint8, device="cuda")
        y = torch.empty_like(x)
        del x, y
    assert reading.peak_bytes is not None
    assert reading.baseline_bytes is not None
    assert reading.peak_bytes - reading.baseline_bytes == pytest.approx(128 * MB, rel=0.02)
