"""Fast operations, each with a readable reference."""

from __future__ import annotations

from archbench.kernels.attention import causal_attention
from archbench.kernels.attention_backends import attention_backend, record_attention, resolve_attention, why_not
from archbench.kernels.convolution import causal_convolution
from archbench.kernels.dropout import fast_dropout
from archbench.kernels.grouped_matmul import grouped_matmul
from archbench.kernels.linear_cross_entropy import linear_cross_entropy
from archbench.kernels.matmul import linear
from archbench.kernels.residual_norm import residual_norm
from archbench.kernels.rms_norm import rms_norm
from archbench.kernels.rotation import rotate
from archbench.kernels.single_query import single_query_attention
from archbench.kernels.split_heads import split_heads

__all__ = [
    "attention_backend",
    "causal_attention",
    "causal_convolution",
    "fast_dropout",
    "grouped_matmul",
    "linear",
    "linear_cross_entropy",
    "record_attention",
    "residual_norm",
    "resolve_attention",
    "rms_norm",
    "rotate",
    "single_query_attention",
    "split_heads",
    "why_not",
]
