"""Attention of one query to keys of which some hold no position yet: a decoding step of static shapes.

    q (B, H, 1, D), k and v (B, G, S, D), bias (1, S)  ->  (B, H, 1, D)

S is fixed, and which keys count is on the device, in the bias. On GPUs it is torch's memory-efficient kernel, which
takes a bias and any shape; never cuDNN, which would make a plan for each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from archbench.errors import DeviceError
from archbench.kernels import attention_backends

TAKE_A_BIAS = ("auto", "sdpa", "sdpa-efficient", "reference")
"""Backends that can be asked for."""


def single_query_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax of q · k / √D + bias, times v, in one of torch's kernels.

    Args:
        q: (B, H, 1, D), H a multiple of G.
        k, v: (B, G, S, D), finite everywhere.
        bias: (1, S), 0 where the query attends and -inf elsewhere.

    Returns:
        (B, H, 1, D), in q's dtype.

    Raises:
        DeviceError: a backend is set that takes no bias.
    """
    B, H, T, D = q.shape
    G = k.shape[1]
    asked = attention_backends.ambient
    if asked not in TAKE_A_BIAS:
        cause = "it does not attend to keys by a bias, as a static step needs"
        raise DeviceError(f"attention {asked!r}", cause, f"Use one of {', '.join(TAKE_A_BIAS)}")
    name, attend = ("reference", reference_single_query) if asked == "reference" else _by_torch(q)
    for recorder in attention_backends.recorders:
        recorder.add(name)
    grouped = q.reshape(B, G, H // G * T, D)  # a group's queries, all at the same position
    return attend(grouped, k, v, bias).reshape(B, H, T, D)


def reference_single_query(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The definition, in matrix products; q (B, G, H/G, D), k and v (B, G, S, D), bias (1, S)."""
    scores = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + bias  # (B, G, H/G, S)
    return torch.matmul(scores.softmax(dim=-1), v)


def _by_torch(q: Tensor) -> tuple[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]:
    if q.device.type != "cuda":
        return "sdpa", _scaled_dot_product
    wanted = 8 if q.dtype.itemsize == 2 else 4  # the kernel loads 16 bytes at a time
    if q.dtype in (torch.float16, torch.bfloat16, torch.float32) and q.shape[-1] % wanted == 0:
        return "sdpa-efficient", _memory_efficient
    return "reference", reference_single_query


def _scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _memory_efficient(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
