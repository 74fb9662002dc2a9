"""Blocks for plugin authors."""

from __future__ import annotations

from archbench.nn.cache import KVCache
from archbench.nn.dropout import Dropout

__all__ = ["Dropout", "KVCache"]
from archbench.nn.linear import Linear
