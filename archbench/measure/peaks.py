"""The hardware's peaks: measured (matrix products, memory bandwidth) and published (data sheets).

Utilisation of model FLOPs (MFU) is Chowdhery et al. 2022 (PaLM), appendix B: model FLOP/s over the peak FLOP/s of
the device in the dtype used. Where no peak is known it is None, never a guess.

Use of the memory bandwidth (MBU): bytes that decoding has to read (:func:`archbench.measure.sizes.decode_step_bytes`)
a second, over the bandwidth that ``archbench doctor`` measured on this machine and kept in the cache.
"""

from __future__ import annotations

import platform
import re
import warnings
from functools import partial
from pathlib import Path

import torch

from archbench.data.cache import cache_folder, content_key, write_atomically
from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.loader import read_json
from archbench.files.seal import sealed
from archbench.measure.clock import clock_for, device_seconds_of
from archbench.measure.machine import device_name

# Dense peaks (no structured sparsity) with float32 accumulation, TFLOP/s, from the makers' data sheets and
# architecture white papers: device-name pattern -> dtype -> peak. float32 means the plain units, not TF32: torch's
# default for float32 products. Order matters: the first pattern that matches wins.
_V100 = {"float16": 125.0, "float32": 15.7}
_HOPPER_SXM = {"bfloat16": 989.4, "float16": 989.4, "float32": 66.9}
_HOPPER_NVL = {"bfloat16": 835.5, "float16": 835.5, "float32": 60.0}
_PUBLISHED: tuple[tuple[str, dict[str, float]], ...] = (
    (r"V100S", {"float16": 130.0, "float32": 16.4}),  # NVIDIA V100 data sheet, 2020
    (r"V100.*PCIE", {"float16": 112.0, "float32": 14.0}),
    (r"V100.*SXM", _V100),
    (r"Tesla T4\b", {"float16": 65.0, "float32": 8.1}),  # NVIDIA T4 data sheet, 2019
    (r"\bA100\b", {"bfloat16": 312.0, "float16": 312.0, "float32": 19.5}),  # NVIDIA A100 data sheet, 2021
    (r"\bA30\b", {"bfloat16": 165.0, "float16": 165.0, "float32": 10.3}),  # NVIDIA A30 data sheet, 2021
    (r"\bA40\b", {"bfloat16": 149.7, "float16": 149.7, "float32": 37.4}),  # NVIDIA A40 data sheet, 2021
    (r"\bA10\b", {"bfloat16": 125.0, "float16": 125.0, "float32": 31.2}),  # NVIDIA A10 data sheet, 2021
    (r"RTX A6000", {"bfloat16": 154.8, "float16": 154.8, "float32": 38.7}),  # GA102 white paper, appendix
    (r"\bL4\b", {"bfloat16": 121.0, "float16": 121.0, "float32": 30.3}),  # NVIDIA L4 data sheet, 2023: 242 sparse
    (r"\bL40S\b", {"bfloat16": 362.05, "float16": 362.05, "float32": 91.6}),  # NVIDIA L40S data sheet, 2023
    (r"\bL40\b", {"bfloat16": 181.05, "float16": 181.05, "float32": 90.5}),  # NVIDIA L40 data sheet, 2022
    (r"H100 NVL", _HOPPER_NVL),  # NVIDIA H100 data sheet, 2024: 1,671 sparse
    (r"H100.*PCIe", {"bfloat16": 756.0, "float16": 756.0, "float32": 51.0}),  # H100 data sheet, 2022: 1,513 sparse
    (r"H100.*HBM3", _HOPPER_SXM),  # SXM: NVIDIA H100 data sheet, 2024: 1,979 sparse
    (r"H200 NVL", _HOPPER_NVL),  # NVIDIA H200 data sheet, 2024
    (r"\bH200\b", _HOPPER_SXM),
    (r"GH200", _HOPPER_SXM),  # NVIDIA GH200 data sheet, 2023
    (r"\bB200\b", {"bfloat16": 2250.0, "float16": 2250.0, "float32": 75.0}),  # HGX B200 data sheet, 2024, over 8
    (r"RTX 3090\b(?! Ti)", {"bfloat16": 71.0, "float16": 71.0, "float32": 35.6}),  # GA102 white paper, table 9
    (r"RTX 4090\b(?! [DL])", {"bfloat16": 165.2, "float16": 165.2, "float32": 82.6}),  # Ada white paper, appendix A
    (r"RTX 5090\b(?! [DL])", {"bfloat16": 209.5, "float16": 209.5, "float32": 104.8}),  # RTX Blackwell white paper
    (r"MI300X", {"bfloat16": 1307.4, "float16": 1307.4, "float32": 163.4}),  # AMD Instinct MI300X data sheet, 2023
    (r"MI325X", {"bfloat16": 1307.4, "float16": 1307.4, "float32": 163.4}),  # AMD Instinct MI325X data sheet, 2024
)

_GEMM_SIZES = (512, 1024, 2048, 4096, 8192)
_LONGEST_PRODUCT = 0.1  # seconds; a size that is expected to take longer is not tried
_SMALLEST_BUFFER = 64 * 2**20


def published_peak(device: torch.device | str, dtype: torch.dtype) -> float | None:
    """Dense peak of the device's data sheet, FLOP/s; None for CPUs, unknown GPUs and slices of a GPU."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return published_peak_of(torch.cuda.get_device_name(device), dtype)


def published_peak_of(device_name: str, dtype: torch.dtype) -> float | None:
    """Dense peak by the name the driver gives the GPU, such as ``NVIDIA H100 80GB HBM3``, FLOP/s; None if unknown."""
    if " MIG " in f" {device_name} " or re.search(r"Laptop|Max-Q", device_name):
        return None  # part of a chip, or a chip with other clocks than the data sheet's
    for pattern, peaks in _PUBLISHED:
        if re.search(pattern, device_name, re.IGNORECASE):
            peak = peaks.get(str(dtype).removeprefix("torch."))
            return None if peak is None else peak * 1e12
    return None


def mfu(flops_per_second: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation, a share of 1; None if no peak is known."""
    return flops_per_second / peak if peak else None


def measure_gemm(device: torch.device | str, dtype: torch.dtype, *, repeats: int = 5) -> float | None:
    """Best FLOP/s of a square matrix product, over a few sizes and ``repeats`` products of each; a second or two.

    Returns:
        FLOP/s; None if the device cannot multiply matrices of that dtype.
    """
    device = torch.device(device)
    clock = clock_for(device)
    best = 0.0
    for n in _GEMM_SIZES:
        if best and 2 * n**3 / best > _LONGEST_PRODUCT:
            break
        try:
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))  # (n, n)
            out = torch.mm(a, b)
        except RuntimeError:  # this size needs too much memory, or the dtype has no product here
            return best or None
        # The first product loads kernels and wakes threads, so there is one more.
        for _ in range(repeats + 1):
            best = max(best, 2 * n**3 / device_seconds_of(partial(torch.mm, a, b, out=out), clock))
    return best


def measure_bandwidth(device: torch.device | str, *, repeats: int = 10) -> float:
    """Best memory bandwidth, bytes/s: STREAM's triad ``a = b + s c``, 3 arrays, each four times the last-level cache.

    As STREAM counts (McCalpin 1995): two reads and one write an element, without the read that a write may cause.
    """
    device = torch.device(device)
    clock = clock_for(device)
    size = max(_SMALLEST_BUFFER, 4 * last_level_cache_bytes(device))
    a, b, c = (torch.zeros(size // 4, dtype=torch.float32, device=device) for _ in range(3))
    triad = partial(torch.add, b, c, alpha=3.0, out=a)
    triad()  # touch every page first
    return 3 * a.nbytes / min(device_seconds_of(triad, clock) for _ in range(repeats))


def keep_bandwidth(device: torch.device | str, bandwidth: float) -> None:
    """Keep the measured bandwidth, bytes/s, of this machine's device at this number of threads, for later runs.

    Warns:
        ArchbenchWarning: the cache cannot be written.
    """
    file, facts = _bandwidth_file(device)
    text = sealed({**facts, "bytes_per_second": bandwidth})
    try:
        write_atomically(file, lambda out: out.write(text.encode()))
    except StorageError as error:
        warnings.warn(f"the memory bandwidth is not kept: {error}", ArchbenchWarning, stacklevel=2)


def known_bandwidth(device: torch.device | str) -> float | None:
    """What :func:`keep_bandwidth` kept of this machine, this device and this number of threads; None if nothing.

    Raises:
        StorageError: it is damaged.
    """
    file, _ = _bandwidth_file(device)
    if not file.exists():
        return None
    step = "Measure it again: archbench doctor"
    return float(read_json(file, sealing="required", next_step=step)["bytes_per_second"])


def _bandwidth_file(device: torch.device | str) -> tuple[Path, dict[str, str]]:
    """The file in the cache, and what its name is made of; a GPU's bandwidth does not depend on threads."""
    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 0
    facts = {"machine": platform.node(), "device": device_name(device), "threads": str(threads)}
    return cache_folder() / "bandwidth" / f"{content_key(*facts.values())}.json", facts


def last_level_cache_bytes(device: torch.device) -> int:
    """Bytes of the GPU's L2 or of one CPU's outermost cache, at most 256 MB; 32 MB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [32 * 2**20]
    levels = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    for level in levels:
        text = (level / "size").read_text("utf-8").strip() if (level / "size").exists() else ""
        if match := re.fullmatch(r"(\d+)([KM])", text):
            sizes.append(int(match[1]) * {"K": 2**10, "M": 2**20}[match[2]])
    return min(max(sizes), 256 * 2**20)
