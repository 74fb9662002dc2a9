"""``torch.compile``, whose failures are errors."""

from __future__ import annotations

import shutil
from typing import cast

import torch
from torch import nn

from archbench.errors import DeviceError, HookFailedError


def compile_model(model: nn.Module, device: torch.device) -> nn.Module:
    """A wrapper of ``model`` that is compiled at its first call and shares the parameters.

    Parts that torch cannot trace run uncompiled (graph breaks). A failing compiler and a graph recompiled too often are
    errors; by default torch would silently continue uncompiled.

    Raises:
        DeviceError: there is no C++ compiler for a CPU.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise DeviceError(
            "--compile",
            "torch.compile needs a C++ compiler on a CPU, but none is on PATH",
            "Install g++, or drop --compile",
        )
    import torch._dynamo  # imported late: it takes a second

    torch._dynamo.config.suppress_errors = False
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return cast(nn.Module, torch.compile(model))


def compile_error(error: Exception) -> DeviceError | None:
    """The error to show if torch's compiler raised ``error``, in a plugin's hook or not; otherwise None."""
    if isinstance(error, HookFailedError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return DeviceError(
        "--compile",
        f"torch.compile failed: {' '.join(lines[:2]).rstrip('.')}",
        "Drop --compile, or see the whole message with --debug",
    )
