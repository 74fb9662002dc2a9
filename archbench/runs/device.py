"""Devices by name, checked before any work, and the set-up of a process that measures on one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from archbench.config import KernelConfig, RunConfig
from archbench.errors import DeviceError
from archbench.kernels import resolve_attention
from archbench.kernels.attention_rules import use_measured
from archbench.kernels.attention_sdpa import without_cudnn
from archbench.kernels.float8_linear import why_not_float8
from archbench.kernels.product_choice import TORCH, choose_products, record_products
from archbench.kernels.triton_guard import without_triton
from archbench.measure.attention_speeds import known_attention_speeds
from archbench.measure.machine import device_name, driver_version, versions
from archbench.measure.malloc import tune_malloc
from archbench.measure.product_speeds import ProductSpeeds, room_for_copies
from archbench.runs.rows import Rows


def default_device() -> str:
    """``cuda`` where torch finds a GPU, otherwise ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        DeviceError: no such device on this machine, or in this build of torch.
    """
    culprit = f"--device {name}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        cause = f"torch knows no such device ({str(error).splitlines()[0].rstrip('.')})"
        raise DeviceError(culprit, cause, "Use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(culprit, f"archbench does not measure {device.type} devices", "Use cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        without = torch.version.cuda is None and torch.version.hip is None
        cause = f"torch {torch.__version__} {'is a build without CUDA' if without else 'finds no GPU'}"
        step = "Use --device cpu, or install a CUDA build of torch and check nvidia-smi"
        raise DeviceError(culprit, cause, step)
    if device.index is not None and device.type == "cuda" and device.index >= torch.cuda.device_count():
        cause = f"this machine has {torch.cuda.device_count()} GPU(s)"
        raise DeviceError(culprit, cause, "Use a smaller index, from cuda:0 on")
    return device


def check_dtype(config: RunConfig, device: torch.device) -> None:
    """Refuse a dtype that the device cannot train in.

    Raises:
        DeviceError: float16 on a CPU (no loss scaling there), or bfloat16 on a GPU that lacks it.
    """
    if config.dtype == "float16" and device.type == "cpu":
        raise DeviceError("--dtype float16", "torch does not scale float16 losses on a CPU", "Use bfloat16 or float32")
    if (
        config.dtype == "bfloat16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        name = torch.cuda.get_device_name(device)
        raise DeviceError("--dtype bfloat16", f"{name} has no bfloat16 arithmetic", "Use --dtype float16 or float32")


def check_float8(config: RunConfig, device: torch.device) -> None:
    """Refuse products in float8 where they are not, or not with the run's dtype.

    Raises:
        DeviceError: on that device, or under autocast to that dtype, there are none.
    """
    reason = None if config.float8 == "none" else why_not_float8(device, getattr(torch, config.dtype))
    if reason is not None:
        raise DeviceError(f"--float8 {config.float8}", *reason)


def check_attention(config: RunConfig, device: torch.device) -> None:
    """Refuse an attention backend that cannot run on the device with any sizes, or not in one of the phases.

    Raises:
        DeviceError: it cannot; says why. Limits of head width, masks and dropout show only at the first batch.
    """
    dtype: torch.dtype = getattr(torch, config.dtype)
    for T in (2, *([1] if {"decode", "serve"} & {*config.phases} else [])):
        resolve_attention(
            config.attention, device_type=device.type, device_index=device.index, dtype=dtype, T=T, S=2, D=64,
            gradients=T > 1 and "train" in config.phases, compiling=config.compile,
        )  # fmt: skip


@contextmanager
def measuring(phase: str, config: RunConfig | KernelConfig) -> Iterator[tuple[torch.device, Rows]]:
    """Set allocator, threads and device as ``config`` says; yields the device, and rows that record the settings.

    Raises:
        DeviceError: there is no such device.
    """
    malloc = tune_malloc()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    rows = Rows(
        phase,
        dtype=config.dtype,
        malloc=malloc,
        threads=torch.get_num_threads(),
        device=device.type,
        device_name=device_name(device),
        host=socket.gethostname(),
        driver=driver_version(device),
        **versions(),
    )
    if device.type == "cuda":
        use_measured(known_attention_speeds(device))
        # Models that call torch's attention by themselves would get a plan of cuDNN's for each length.
        with nullcontext() if phase in ("train", "kernel") else without_cudnn(), record_products() as rows.multiplied:
            yield device, rows
    else:
        products = config.products if isinstance(config, RunConfig) else "measured"
        choice = (lambda case, race: TORCH) if products == "torch" else ProductSpeeds()
        choose_products(choice, packing=room_for_copies() if products == "measured" else 0)
        # Optimizers load torch's compiler, which would import Triton; its memory would count as the model's.
        with without_triton(), record_products() as rows.multiplied:
            yield device, rows
