"""The precision of operations: exact sums, and autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def exact(x: Tensor) -> Tensor:
    """``x`` in :func:`exact_dtype`; ``x`` itself if it has that dtype."""
    return x.to(exact_dtype(x.dtype))


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast casts ``x`` to; None if it is off or leaves ``x`` alone."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Autocast off on the device of ``like``; the meta device has none."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext()
