"""Causal attention: one function, several backends.

    q (B, H, T, D), k and v (B, G, S, D)  ->  (B, H, T, D)

H is a multiple of G (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245). If T is
smaller than S, the queries are the *last* T of the S positions, as in decoding from a cache. With a window W each
position sees itself and the W - 1 positions before it (Beltagy et al. 2020, arXiv:2004.05150).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from archbench.errors import UsageError
from archbench.kernels import attention_backends
from archbench.kernels.attention_blocks import block_attention
from archbench.kernels.attention_op import fused_attention
from archbench.kernels.attention_torch import flex_attention, reference_attention, sdpa_attention


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Scaled dot-product attention of each position to itself and earlier ones (Vaswani et al. 2017, section 3.2).

    Args:
        q: queries (B, H, T, D), the last T of the S positions.
        k: keys (B, G, S, D), H a multiple of G and T <= S.
        v: values (B, G, S, D).
        window: W, positions that each position sees, itself included; None for all.
        scale: factor of the scores; None for 1/sqrt(D).
        dropout: probability of dropping an attention weight; pass 0 outside training.
        backend: ``triton``, ``sdpa`` or one of its kernels (``sdpa-cudnn``, ``sdpa-flash``, ``sdpa-efficient``,
            ``sdpa-math``), ``flex``, ``blocks``, ``reference``, ``auto``, or None for the one that
            :func:`attention_backend` set. Auto is the fastest that can run, and sdpa the fastest of its kernels: see
            :func:`resolve_attention`.
        precision: of the Triton kernel's float32 products: ``ieee``, ``tf32x3`` (three TF32 products, nearly as exact)
            or ``tf32`` (10 bits). Torch's backends follow torch's own setting.

    Returns:
        (B, H, T, D), in q's dtype.

    Raises:
        UsageError: the shapes do not fit together, or the window, dropout, backend or precision is invalid.
        DeviceError: the backend cannot compute this here.
    """
    _check(q, k, v, window, dropout)
    B, H, T, D = q.shape
    device = q.device
    asked = attention_backends.ambient if backend is None else backend
    gradients = compiling = False
    if device.type == "cuda" or asked == "flex":  # nothing else depends on it, and asking costs time at every call
        gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if asked == "flex" or device.type == "cpu":
        compiling = torch.compiler.is_compiling()
    name = attention_backends.resolve_attention(
        asked, device_type=device.type, device_index=device.index, dtype=q.dtype, T=T, S=k.shape[2], D=D,
        window=window, dropout=dropout, gradients=gradients, compiling=compiling, precision=precision,
        heads=B * H,
    )  # fmt: skip
    ran = "triton-autotuned" if name == "triton" and attention_backends.autotunes(device.type) else name
    for recorder in attention_backends.recorders:
        recorder.add(ran)
    scale = 1.0 / math.sqrt(D) if scale is None else scale
    if name == "triton":
        return fused_attention(q, k, v, window=window, scale=scale, precision=precision, dropout=dropout)
    if name == "flex":
        return flex_attention(q, k, v, window=window, scale=scale)
    if name == "blocks":
        return block_attention(q, k, v, window=window, scale=scale, dropout=dropout)
    if name == "reference":
        return reference_attention(q, k, v, window=window, scale=scale, dropout=dropout)
    return sdpa_attention(q, k, v, window=window, scale=scale, dropout=dropout, kernel=name)


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None, dropout: float) -> None:
    fits = (
        q.dim() == k.dim() == 4
        and k.shape == v.shape
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
        and q.shape[1] % k.shape[1] == 0
        and 0 < q.shape[2] <= k.shape[2]
    )
    if not fits:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise UsageError(
            "causal_attention",
            f"the shapes {shapes} do not fit together",
            "Pass q (B, H, T, D) and k, v (B, G, S, D), H a multiple of G and T <= S",
        )
    if window is not None and window < 1:
        raise UsageError(
            "window", f"{window} positions would hide every position from itself", "Pass at least 1, or None"
        )
    if not 0.0 <= dropout < 1.0:
        raise UsageError("dropout", f"{dropout} is not a probability below 1", "Pass 0 <= dropout < 1")
