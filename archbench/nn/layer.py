"""The base of modules that map one tensor to one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn


class Layer(nn.Module):
    """An ``nn.Module`` x -> y, whose call type checkers know; shapes are the subclass's."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...
