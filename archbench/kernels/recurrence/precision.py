"""The precision that recurrences are computed in, whatever the model around them is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Autocast off on the device of ``like``, where there is such a thing: the meta device knows none."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext()
