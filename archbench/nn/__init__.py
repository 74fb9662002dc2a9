"""Blocks for architectures."""

from __future__ import annotations

from archbench.nn.attention import RotaryAttention, SelfAttention, attend
from archbench.nn.cache import JoinedCache, KVCache, StateCache
from archbench.nn.convolution import CausalConv1d
from archbench.nn.decoder import DecoderOnly
from archbench.nn.dropout import Dropout
from archbench.nn.experts import Routing, SparseExperts, load_balancing_loss
from archbench.nn.feed_forward import FeedForward, GatedFeedForward
from archbench.nn.linear import Linear, LowRank
from archbench.nn.norm import ResidualNorm, RMSNorm
from archbench.nn.published import (
    LLAMA_ATTENTION_FIELDS,
    LLAMA_FIELDS,
    LLAMA_NAMES,
    exported_fields,
    exported_weights,
    inexpressible,
    llama_rows,
    published_fields,
    published_rope_theta,
    published_weights,
    unlike,
)
from archbench.nn.rg_lru import RGLRU
from archbench.nn.rotary import Rotary, rows_at
from archbench.nn.token_shift import shift_mixer

__all__ = [
    "LLAMA_ATTENTION_FIELDS",
    "LLAMA_FIELDS",
    "LLAMA_NAMES",
    "RGLRU",
    "CausalConv1d",
    "DecoderOnly",
    "Dropout",
    "FeedForward",
    "GatedFeedForward",
    "JoinedCache",
    "KVCache",
    "Linear",
    "LowRank",
    "RMSNorm",
    "ResidualNorm",
    "Rotary",
    "RotaryAttention",
    "Routing",
    "SelfAttention",
    "SparseExperts",
    "StateCache",
    "attend",
    "exported_fields",
    "exported_weights",
    "inexpressible",
    "llama_rows",
    "load_balancing_loss",
    "published_fields",
    "published_rope_theta",
    "published_weights",
    "rows_at",
    "shift_mixer",
    "unlike",
]
