"""The kernels of torch's scaled_dot_product_attention (SDPA), each by its own name and never by torch's choice.

sdpa-cudnn      NVIDIA's cuDNN, which builds a plan for each new shape: 0.44 s forward and 0.55 s backward on a B200
                (FunASR issue 3704)
sdpa-flash      FlashAttention-2 (AOTriton on AMD's GPUs); on CPUs torch's own
sdpa-efficient  CUTLASS's memory-efficient attention (Rabe and Staats 2021, arXiv:2112.05682), which takes masks
sdpa-math       matrix products that hold all (T, S) weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.backends.cuda as switches
import torch.nn.functional as F
from torch import Tensor

KERNELS = ("sdpa-cudnn", "sdpa-flash", "sdpa-efficient", "sdpa-math")

SHAPES = ("square", "masked", "single")
"""What a call asks of a kernel: T = S without a window, which is_causal describes; a mask; one query without a mask."""

_READ: dict[str, Callable[[], bool]] = {
    "sdpa-cudnn": switches.cudnn_sdp_enabled,
    "sdpa-flash": switches.flash_sdp_enabled,
    "sdpa-efficient": switches.mem_efficient_sdp_enabled,
    "sdpa-math": switches.math_sdp_enabled,
}
_SET: dict[str, Callable[[bool], None]] = {
    "sdpa-cudnn": switches.enable_cudnn_sdp,
    "sdpa-flash": switches.enable_flash_sdp,
    "sdpa-efficient": switches.enable_mem_efficient_sdp,
    "sdpa-math": switches.enable_math_sdp,
}
_CAN_USE = {
    "sdpa-cudnn": switches.can_use_cudnn_attention,
    "sdpa-flash": switches.can_use_flash_attention,
    "sdpa-efficient": switches.can_use_efficient_attention,
}
_HALF = (torch.float16, torch.bfloat16)


def scaled_dot_product(kernel: str, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """``F.scaled_dot_product_attention`` by that kernel alone; ``sdpa`` is torch's own choice, as on CPUs.

    Raises:
        RuntimeError: the kernel cannot compute this (:func:`why_not_sdpa` says so before).
    """
    if kernel not in KERNELS:
        return F.scaled_dot_product_attention(q, k, v, **how)
    if kernel == "sdpa-efficient" and q.shape[1] != k.shape[1]:  # it takes no groups: torch would use sdpa-math
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if torch.compiler.is_compiling():
        from torch.nn.attention import sdpa_kernel

        with sdpa_kernel(_backend(kernel)):
            return F.scaled_dot_product_attention(q, k, v, **how)
    # What sdpa_kernel does, in 1 µs instead of 16: it would double the host's time for a call.
    before = [read() for read in _READ.values()]
    try:
        for name, switch in _SET.items():
            switch(name == kernel)
        return F.scaled_dot_product_attention(q, k, v, **how)
    finally:
        for switch, on in zip(_SET.values(), before, strict=True):
            switch(on)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Within this context torch's own choice is never cuDNN: for models that call SDPA by themselves in decoding."""
    before = _READ["sdpa-cudnn"]()
    _SET["sdpa-cudnn"](False)
    try:
        yield
    finally:
        _SET["sdpa-cudnn"](before)


def shape_of(T: int, S: int, window: int | None) -> str:
    """Which of :data:`SHAPES` T queries over S keys are, with a window W or None."""
    if T == 1:
        return "single"  # the positions before a window are cut off
    return "square" if T == S and (window is None or window >= S) else "masked"


def why_not_sdpa(
    kernel: str,
    device_type: str,
    dtype: torch.dtype,
    D: int,
    *,
    shape: str,
    dropout: float,
    gradients: bool,
    device_index: int | None,
) -> str | None:
    """Why the kernel cannot compute this, as a clause; None if it can. ``shape``: one of :data:`SHAPES`."""
    if kernel == "sdpa-math":
        return None
    name = {"sdpa-cudnn": "cuDNN", "sdpa-flash": "torch's FlashAttention", "sdpa-efficient": "efficient attention"}[
        kernel
    ]
    if device_type == "cpu":
        if kernel != "sdpa-flash":
            return f"{name} runs only on GPUs, but q is on cpu"
        return "torch's FlashAttention has no dropout on CPUs" if dropout else None
    if device_type != "cuda":
        return f"{name} runs only on CPUs and on NVIDIA's and AMD's GPUs, but q is on {device_type}"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if kernel != "sdpa-efficient" and dtype not in _HALF:
        return f"{name} computes float16 and bfloat16, but q is {str(dtype).removeprefix('torch.')}"
    if kernel == "sdpa-flash" and shape == "masked":
        return f"{name} takes no mask, which a window needs, and queries that begin after the first key"
    if kernel == "sdpa-cudnn" and shape == "single":
        return (
            "cuDNN builds a plan for each shape, and in decoding every token has another: 0.4 s a token on a B200 "
            "(FunASR issue 3704)"
        )
    if not _torch_says_yes(kernel, dtype, D, shape, dropout, gradients, device_index):
        of = f"head width {D}, {str(dtype).removeprefix('torch.')}{', dropout' if dropout else ''}"
        question = f"torch.backends.cuda.{_CAN_USE[kernel].__name__}"
        return f"{name} cannot do it here ({of}), by {question}"
    return None


def torch_prefers_cudnn(
    dtype: torch.dtype, D: int, shape: str, dropout: float, gradients: bool, device_index: int | None
) -> bool:
    """Whether torch itself would take cuDNN: it does from a version of cuDNN on that it trusts, on some GPUs."""
    with _switched_on("sdpa-cudnn"), _example(dtype, D, shape, gradients, device_index) as (q, k, v, mask):
        choice = torch._fused_sdp_choice(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=shape == "square")
        return bool(choice == _backend("sdpa-cudnn").value)


def _torch_says_yes(
    kernel: str, dtype: torch.dtype, D: int, shape: str, dropout: float, gradients: bool, device_index: int | None
) -> bool:
    """Torch's own rules for GPU, cuDNN and sizes."""
    with _switched_on(kernel), _example(dtype, D, shape, gradients, device_index) as (q, k, v, mask):
        return bool(_CAN_USE[kernel](switches.SDPAParams(q, k, v, mask, dropout, shape == "square", False), False))


@contextmanager
def _switched_on(kernel: str) -> Iterator[None]:
    before = _READ[kernel]()
    _SET[kernel](True)
    try:
        yield
    finally:
        _SET[kernel](before)


@contextmanager
def _example(
    dtype: torch.dtype, D: int, shape: str, gradients: bool, device_index: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Small tensors to ask torch with: q, k, v, and a mask if the shape has one."""
    from torch.utils._python_dispatch import _disable_current_modes

    T, S = {"square": (64, 64), "masked": (16, 64), "single": (1, 64)}[shape]
    device = torch.device("cuda", torch.cuda.current_device() if device_index is None else device_index)
    with _disable_current_modes(), torch.enable_grad():
        q, k, v = (
            torch.empty(1, 2, rows, D, dtype=dtype, device=device, requires_grad=gradients) for rows in (T, S, S)
        )
        mask = torch.ones(T, S, dtype=torch.bool, device=device) if shape == "masked" else None
        yield q, k, v, mask


def _backend(kernel: str) -> Any:
    from torch.nn.attention import SDPBackend

    return {
        "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
        "sdpa-flash": SDPBackend.FLASH_ATTENTION,
        "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "sdpa-math": SDPBackend.MATH,
    }[kernel]
