"""Tunes glibc's allocator for large tensors, which it otherwise returns to the system and maps anew each time.

mallopt(3): with ``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD`` at 2**31 - 1 freed memory stays in the process, and
``M_TOP_PAD`` lets the heap grow in 64 MB steps. This costs 5–15 % more memory, so the setting is recorded in every row.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # malloc.h of glibc
_LARGEST = 2**31 - 1
_TOP_PAD = 64 * 2**20


def tune_malloc() -> str:
    """Set the allocator of this process; call it before the first tensor.

    Returns:
        The setting, for the ``malloc`` column: ``glibc: mmap_threshold=...``, ``preloaded: NAME`` if another
        allocator replaces glibc's, or ``default`` without glibc. Nothing is set in the last two cases.
    """
    if sys.platform != "linux":
        return "default"
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return "default"
    for preloaded in os.environ.get("LD_PRELOAD", "").replace(":", " ").split():
        if "malloc" in Path(preloaded).name:
            return f"preloaded: {Path(preloaded).name}"
    settings = []
    if library.mallopt(_M_MMAP_THRESHOLD, _LARGEST):
        settings.append(f"mmap_threshold={_LARGEST}")
    elif library.mallopt(_M_MMAP_MAX, 0):  # older versions cap the threshold at 32 MB; no mmap at all does the same
        settings.append("mmap_max=0")
    if library.mallopt(_M_TRIM_THRESHOLD, _LARGEST):
        settings.append(f"trim_threshold={_LARGEST}")
    if library.mallopt(_M_TOP_PAD, _TOP_PAD):
        settings.append(f"top_pad={_TOP_PAD}")
    return f"glibc: {' '.join(settings)}" if settings else "default"
