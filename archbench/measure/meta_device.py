"""The meta device, where tensors have shapes and no values: a model of any size is built there at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWING = {
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
    Tensor.normal_,
    Tensor.uniform_,
}


@contextmanager
def meta_device() -> Iterator[None]:
    """New tensors are on the meta device, and no initial values are drawn for them.

    ``torch.device("meta")`` alone gives the same model: it draws none either, but loads torch's compiler to find the
    shape of what it would draw, and takes a millisecond for each tensor.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _DRAWING and (tensor := args[0] if args else given["tensor"]).is_meta:
            return tensor
        return func(*args, **given)
