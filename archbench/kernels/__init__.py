"""Fast operations, each beside its readable reference."""

from __future__ import annotations

from archbench.kernels.attention import attention_backend, causal_attention, record_attention, resolve_attention
from archbench.kernels.dropout import fast_dropout
from archbench.kernels.matmul import linear

__all__ = [
    "attention_backend",
    "causal_attention",
    "fast_dropout",
    "linear",
    "record_attention",
    "resolve_attention",
]
