"""Half-precision copies of float32 weights, made together once an update instead of one by one at each use.

Autocast casts each weight where a product uses it, and casts its gradient back by itself: two kernels a weight and
micro-batch, 192 of the 913 launches of a training step of GPT-1 on a GPU. Here all weights that products use are cast
by one ``foreach`` operation, and so are their gradients, in the same rounding: losses and gradients are bit for bit
those of autocast, which still casts everything else. On CPUs it is slower (docs/explanation/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from archbench.kernels.precision import autocast_dtype

_active: WorkingWeights | None = None


def working(weight: Tensor) -> Tensor:
    """The copy of a weight that products should use; the weight itself outside :meth:`WorkingWeights.used`, and where
    autocast is off or to another dtype."""
    return weight if _active is None else _active.copy_of(weight)


class WorkingWeights:
    """The copies of one model's weights in one dtype; gradients flow through them to the weights.

    The first update shows which weights products use: those are copied from the second one on.

    Args:
        dtype: of the copies, which is autocast's.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._masters: dict[int, nn.Parameter] = {}
        self._known: list[nn.Parameter] = []
        self._narrow: list[Tensor] = []
        self._versions: list[int] = []
        self._copies: dict[int, Tensor] = {}
        self._differentiable = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within this context, :func:`working` gives these copies, as one node of the graph of gradients."""
        global _active
        previous, _active = _active, self
        self._copies, self._known = {}, list(self._masters.values())  # one use may not be cast otherwise than the next
        try:
            yield
        finally:
            self._copies = {}
            _active = previous

    def outdate(self) -> None:
        """Forget the values: the weights change now, or may have changed."""
        self._narrow, self._versions = [], []

    def copy_of(self, weight: Tensor) -> Tensor:
        """See :func:`working`."""
        if type(weight) is not nn.Parameter or weight.dtype != torch.float32 or autocast_dtype(weight) != self.dtype:
            return weight
        if self._known and (not self._copies or (torch.is_grad_enabled() and not self._differentiable)):
            self._make(self._known)
        copy = self._copies.get(id(weight))
        if copy is None:
            self._masters[id(weight)] = weight
            return weight
        return copy

    def _make(self, masters: list[nn.Parameter]) -> None:
        versions = [master._version for master in masters]
        if versions != self._versions:
            self._narrow, self._versions = _cast(masters, self.dtype), versions
        self._differentiable = torch.is_grad_enabled()
        copies = _Copies.apply(self._narrow, *masters)  # type: ignore[no-untyped-call]
        self._copies = dict(zip(map(id, masters), copies, strict=True))


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, narrow: list[Tensor], *masters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(copy.detach() for copy in narrow)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = [gradient for gradient in gradients if gradient is not None]
        if torch.is_grad_enabled():  # a second derivative is wanted
            wide = iter([gradient.float() for gradient in found])
        else:
            wide = iter(_cast(found, torch.float32))
        return (None, *(None if gradient is None else next(wide) for gradient in gradients))


def _cast(tensors: list[Any], dtype: torch.dtype) -> list[Tensor]:
    with torch.no_grad():
        cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(cast, tensors)
    return cast
