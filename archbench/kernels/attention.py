"""Causal attention: one function, several backends, and the rule that chooses between them.

    q (B, H, T, D), k and v (B, G, S, D)  ->  (B, H, T, D)

H is a multiple of G (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245). T may be smaller than S: the
queries are then the *last* T of the S positions, as when decoding from a cache. A window W keeps, for each position,
itself and the W - 1 positions before it (Beltagy et al. 2020, arXiv:2004.05150).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.errors import DeviceError, UnknownNameError, UsageError, did_you_mean
from archbench.kernels.dropout import fast_dropout

BACKENDS = ("sdpa", "reference")
PLANNED_BACKENDS = ("triton", "flex")

# Plain globals and not context variables: torch.compile guards on them, and they are seen by autograd's threads.
_ambient = "auto"
_recorders: list[set[str]] = []


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Scaled dot-product attention of each position to itself and those before it (Vaswani et al. 2017, section 3.2).

    Args:
        q: queries (B, H, T, D), the last T of the S positions.
        k: keys (B, G, S, D), H a multiple of G and T <= S.
        v: values (B, G, S, D).
        window: W, positions that each position sees, itself included; None for all.
        scale: factor of the scores; None for 1/sqrt(D).
        dropout: probability of dropping an attention weight; pass 0 outside training.
        backend: ``sdpa``, ``reference``, ``auto``, or None for what :func:`attention_backend` set.

    Returns:
        (B, H, T, D), in q's dtype.

    Raises:
        UsageError: shapes that do not fit together, or a window, dropout or backend that there is not.
        DeviceError: a backend that this version or machine does not have.
    """
    _check(q, k, v, window, dropout)
    T, D, S = q.shape[-2], q.shape[-1], k.shape[-2]
    name = resolve_attention(
        _ambient if backend is None else backend,
        device_type=q.device.type, dtype=q.dtype, T=T, S=S, D=D, window=window, dropout=dropout,
    )  # fmt: skip
    for recorder in _recorders:
        recorder.add(name)
    scale = 1.0 / math.sqrt(D) if scale is None else scale
    attend = sdpa_attention if name == "sdpa" else reference_attention
    return attend(q, k, v, window=window, scale=scale, dropout=dropout)


def resolve_attention(
    name: str,
    *,
    device_type: str,
    dtype: torch.dtype,
    T: int,
    S: int,
    D: int,
    window: int | None = None,
    dropout: float = 0.0,
) -> str:
    """The backend that runs: ``name`` itself, or for ``auto`` the one measured to be fastest.

    On the meta device nothing runs, and the answer is always ``reference``, whose matrix products can be counted.

    Raises:
        UnknownNameError: there is no such backend.
        DeviceError: the backend is planned, and not in this version.
    """
    if name in PLANNED_BACKENDS:
        raise DeviceError(
            f"attention {name!r}", "this version does not have that backend", f"Use one of auto, {', '.join(BACKENDS)}"
        )
    if name != "auto" and name not in BACKENDS:
        raise UnknownNameError(
            f"attention {name!r}", "there is no such backend", did_you_mean(name, ["auto", *BACKENDS])
        )
    if device_type == "meta":
        return "reference"
    if name != "auto":
        return name
    if device_type == "cpu" and dropout > 0:
        return "reference"  # SDPA leaves its fast path for dropout, and is then twice as slow
    if device_type == "cpu" and dtype == torch.bfloat16 and T <= 512 and (T > 1 or S >= 128):
        return "reference"  # 1.5 to 4 times as fast; SDPA wins where the (T, S) weights outgrow the caches
    return "sdpa"


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Within this context, attention that names no backend of its own uses ``name``.

    Raises:
        UnknownNameError, DeviceError: as :func:`resolve_attention`, at once.
    """
    global _ambient
    resolve_attention(name, device_type="cpu", dtype=torch.float32, T=1, S=1, D=1)
    previous, _ambient = _ambient, name
    try:
        yield
    finally:
        _ambient = previous


@contextmanager
def record_attention() -> Iterator[set[str]]:
    """Yields a set that collects the name of every backend that runs within this context."""
    recorder: set[str] = set()
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders[:] = [other for other in _recorders if other is not recorder]


def reference_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float, dropout: float) -> Tensor:
    """The definition, in matrix products; holds all (B, H, T, S) weights."""
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    q = q.reshape(B * G, H // G * T, D)  # the H/G heads of a group, one below the other, share its keys
    k, v = k.reshape(B * G, S, D), v.reshape(B * G, S, D)
    hidden = torch.where(visible(T, S, window, q.device), 0.0, -math.inf).to(q.dtype)  # (T, S)
    scores = torch.baddbmm(hidden.repeat(H // G, 1), q, k.transpose(1, 2), alpha=scale)  # (B G, H/G T, S)
    weights = fast_dropout(scores.softmax(dim=-1), dropout, training=True)
    return torch.bmm(weights, v).view(B, H, T, D)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float, dropout: float) -> Tensor:
    """PyTorch's fused kernels."""
    B, H, T, D = q.shape
    G, S = k.shape[1], k.shape[2]
    if window is not None and T + window - 1 < S:  # positions that no query sees
        S = T + window - 1
        k, v = k[:, :, -S:], v[:, :, -S:]
    if window is not None and window >= S:
        window = None
    if T == 1 and window is None:
        grouped = q.reshape(B, G, H // G, D)  # the queries of one group, all at the last position: nothing to hide
        return F.scaled_dot_product_attention(grouped, k, v, dropout_p=dropout, scale=scale).reshape(B, H, T, D)
    causal = T == S and window is None  # SDPA aligns its own mask at the first position, not at the last
    mask = None if causal else visible(T, S, window, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=H != G
    )


def visible(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    """(T, S) bool: which of S positions each of the last T sees."""
    seen = torch.ones(T, S, dtype=torch.bool, device=device).tril_(S - T)
    return seen if window is None else seen.triu_(S - T - window + 1)


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None, dropout: float) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    fits = (
        q.dim() == k.dim() == 4
        and k.shape == v.shape
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
        and q.shape[1] % k.shape[1] == 0
        and 0 < q.shape[2] <= k.shape[2]
    )
    if not fits:
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
