"""Sampling and decoding."""

from __future__ import annotations

from archbench.inference.decoding import decode_with_cache, decode_without_cache, validate_prompt
from archbench.inference.sampling import Sampling

__all__ = ["Sampling", "decode_with_cache", "decode_without_cache", "validate_prompt"]
