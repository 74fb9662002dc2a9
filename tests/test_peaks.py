"""Peaks: published ones by the driver's names, none for unknown devices, and plausible measured ones."""

from __future__ import annotations

import time

import pytest
import torch

from archbench.measure.peaks import measure_bandwidth, measure_gemm, mfu, published_peak, published_peak_of


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100-PCIE-40GB", 312, 19.5),
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835.5, 60),
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA H200 NVL", 835.5, 60),
        ("NVIDIA B200", 2250, 75),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362.05, 91.6),
        ("NVIDIA L40", 181.05, 90.5),
        ("NVIDIA GeForce RTX 3090", 71, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA GeForce RTX 5090", 209.5, 104.8),
        ("Tesla V100-SXM2-16GB", None, 15.7),
        ("Tesla V100-PCIE-32GB", None, 14),
        ("Tesla T4", None, 8.1),
        ("AMD Instinct MI300X", 1307.4, 163.4),
    ],
)
def test_the_data_sheets_dense_peaks_by_the_drivers_names(name: str, bfloat16: float | None, float32: float) -> None:
    assert published_peak_of(name, torch.bfloat16) == (None if bfloat16 is None else bfloat16 * 1e12)
    assert published_peak_of(name, torch.float32) == float32 * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A10G",
        "NVIDIA GB200",
        "Tesla V100-FHHL-16GB",
        "NVIDIA X9000",
    ],
)
def test_slices_relatives_and_strangers_have_no_published_peak(name: str) -> None:
    assert published_peak_of(name, torch.float16) is None


def test_a_cpu_has_no_published_peak() -> None:
    assert published_peak("cpu", torch.float32) is None


def test_mfu_is_a_share_of_the_peak_or_nothing() -> None:
    assert mfu(100e12, 400e12) == 0.25
    assert mfu(100e12, None) is None


def test_the_measured_product_is_no_slower_than_one_timed_by_hand() -> None:
    peak = measure_gemm("cpu", torch.float32)
    a = torch.randn(1024, 1024)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    assert peak is not None
    # A tenth for what else the machine does; the sizes tried include this one.
    assert peak > 0.9 * 2 * 1024**3 / sorted(times)[1]


def test_a_dtype_without_products_has_no_measured_peak() -> None:
    assert measure_gemm("cpu", torch.bool) is None


@pytest.mark.slow
def test_the_measured_bandwidth_is_that_of_memory_and_not_of_a_cache() -> None:
    # DDR3 of one channel gives 10 GB/s, twelve channels of DDR5 460; caches give more, a paging machine less.
    assert 1e9 < measure_bandwidth("cpu", repeats=1) < 1e12
