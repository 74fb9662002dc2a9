"""Devices by name, checked before any work is done."""

from __future__ import annotations

import torch

from archbench.config import RunConfig
from archbench.errors import DeviceError
from archbench.kernels import resolve_attention


def default_device() -> str:
    """``cuda`` where torch finds a GPU, otherwise ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        DeviceError: no such device on this machine, or in this build of torch.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"--device {name}", f"torch knows no such device ({_first_line(error)})", "Use cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            build = (
                "is a build without CUDA"
                if torch.version.cuda is None and torch.version.hip is None
                else "finds no GPU"
            )
            raise DeviceError(
                f"--device {name}",
                f"torch {torch.__version__} {build}",
                "Use --device cpu, or install a CUDA build of torch and check nvidia-smi",
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(
                f"--device {name}",
                f"this machine has {torch.cuda.device_count()} GPU(s)",
                "Use a smaller index, from cuda:0 on",
            )
    elif device.type != "cpu":
        raise DeviceError(
            f"--device {name}", f"archbench does not measure {device.type} devices", "Use cpu, cuda or cuda:N"
        )
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


def check_attention(config: RunConfig, device: torch.device) -> None:
    """Refuse an attention backend that cannot run on the device, whatever the model's sizes.

    Raises:
        DeviceError: it cannot, and why; what depends on head widths or dropout shows at the first batch.
    """
    dtype: torch.dtype = getattr(torch, config.dtype)
    resolve_attention(
        config.attention, device_type=device.type, device_index=device.index, dtype=dtype, T=2, S=2, D=64,
        gradients="train" in config.phases, compiling=config.compile,
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
