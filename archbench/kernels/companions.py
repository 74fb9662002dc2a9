"""What an operation computed besides a tensor, noted on the tensor for whoever wants it next.

A fused kernel that writes a tensor has its copy in half precision, or its column sums, for almost nothing; the next
operation, far away in a model, would need a kernel of its own. A note holds for the tensor object and its values: after
an operation in place, or on a view, there is none, and the next operation computes it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from archbench.kernels.precision import autocast_dtype, without_autocast

_NARROW, _COLUMN_SUMS = "_archbench_narrow", "_archbench_column_sums"


def note_narrow(x: Tensor, narrow: Tensor) -> None:
    """``narrow`` is ``x`` in half precision, and the graph of gradients has both."""
    _note(x, _NARROW, narrow)


def narrowed(x: Tensor) -> Tensor:
    """The half-precision copy of ``x`` that is noted, if autocast wants it; otherwise ``x`` itself."""
    narrow = None if torch.compiler.is_compiling() else _noted(x, _NARROW)
    return x if narrow is None or narrow.dtype != autocast_dtype(x) else narrow


def note_column_sums(x: Tensor, sums: Tensor) -> None:
    """``sums`` (C,) are those of ``x`` (..., C) over all rows."""
    _note(x, _COLUMN_SUMS, sums)


def column_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (C,) of ``x`` (..., C) over all rows, in that dtype: those that are noted, or calculated."""
    noted = _noted(x, _COLUMN_SUMS)
    if noted is not None:
        return noted.to(dtype)
    rows = x.flatten(0, -2)
    if x.device.type != "cuda" or torch.version.hip is not None:
        return rows.sum(0, dtype=dtype)
    # One product instead of a sum by several programs, which also clears what they share.
    ones = _ones(rows.shape[0], rows.dtype, rows.device)
    with without_autocast(x):
        return (ones @ rows if dtype == rows.dtype else torch.mm(ones, rows, out_dtype=dtype))[0]


@lru_cache(maxsize=8)
def _ones(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(1, count, dtype=dtype, device=device)


def _note(x: Tensor, name: str, value: Tensor) -> None:
    if not x.is_inference():  # in inference mode a tensor does not count its changes
        setattr(x, name, (x._version, value))


def _noted(x: Tensor, name: str) -> Tensor | None:
    version, value = getattr(x, name, (None, None))
    return value if version is not None and version == x._version else None
