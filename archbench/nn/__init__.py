"""Blocks for plugin authors."""

from __future__ import annotations

from archbench.nn.cache import KVCache
from archbench.nn.dropout import Dropout
from archbench.nn.linear import Linear

__all__ = ["Dropout", "KVCache", "Linear"]
