"""A few rows times a weight, from a copy of the weight that oneDNN has packed in a layout of its own: decoding on CPUs.

oneDNN packs a weight at every product, which with few rows takes as long as the product itself. A copy is packed once
for all steps of a decoding, in the layout of any number of rows above one, and takes as much memory as the weight. It
lives as long as the weight, is packed again when the weight's values change, and is dropped when the weight is trained.

    GPT-1's published size, all products of a token from memory, two threads of a Zen 4 (reading the weights: 17 ms)
    rows                           2     4     8    16    32    64
    oneDNN, weights as they are   25    28    33    44    60    94  ms
    here                          25    22    26    34    50    83  ms
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from archbench.errors import UsageError

FEWEST_ROWS, MOST_ROWS = 4, 63
"""Within these a step gains a tenth, as measured above."""


class Copy(NamedTuple):
    """A packed copy and what it was packed from: the weight's version, address and bytes."""

    version: int
    address: int
    nbytes: int
    packed: Tensor


_copies: MutableMapping[Tensor, Copy] = WeakTensorKeyDictionary()
_held = 0  # bytes of all copies, and of some that went with their models
_room = 0
_in_step = False


@contextmanager
def decoding_step() -> Iterator[None]:
    """Within this context the same weights meet a few rows again and again, so that packing them can be worth it."""
    global _in_step
    previous, _in_step = _in_step, True
    try:
        yield
    finally:
        _in_step = previous


def let_copies_take(nbytes: int) -> None:
    """Make no more copies once all of this process take so much."""
    global _room
    _room = nbytes


def packable(M: int, weight: Tensor) -> bool:
    """Whether M rows of a decoding step may be multiplied by a packed copy of this weight, which has room for it."""
    return (
        _in_step
        and FEWEST_ROWS <= M <= MOST_ROWS
        and type(weight) is nn.Parameter  # a tensor computed for this step would be packed for it alone
        and torch.is_inference_mode_enabled()
        and not weight.is_inference()  # its changes would not be counted
        and (torch._C._len_torch_dispatch_stack() == 0 or weight in _copies)  # a mode records steps: no packing now
        and _has_room(weight)
    )


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, its readable twin: x (..., K) float32, weight (N, K), bias (N,) -> (..., N), on CPUs.

    Changes of the weight through ``weight.data``, which torch does not count, are not seen.

    Raises:
        UsageError: gradients are enabled, which would not flow.
    """
    if torch.is_grad_enabled():
        raise UsageError("packed_product", "gradients do not flow through it", "Use archbench.kernels.linear")
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, _packed(weight), bias, "none", [], "")
    return product


def packed_copies() -> list[Tensor]:
    """All that there are."""
    return [copy.packed for copy in _copies.values()]


def forget(weight: Tensor) -> None:
    """Drop the copy of a weight, if there is one: it is trained now. Autograd's functions may have an alias of it."""
    global _held
    if _held:
        for known in [known for known, copy in _copies.items() if copy.address == weight.data_ptr()]:
            del _copies[known]
        _held = _bytes()


def _packed(weight: Tensor) -> Tensor:
    global _held
    copy = _copies.get(weight)
    if copy is None or copy.version != weight._version or copy.address != weight.data_ptr():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEWEST_ROWS)
        copy = _copies[weight] = Copy(weight._version, weight.data_ptr(), weight.nbytes, packed)
        _held = _bytes()
    return copy.packed


def _has_room(weight: Tensor) -> bool:
    global _held
    if _held + weight.nbytes <= _room:
        return True
    _held = _bytes()
    return weight in _copies or _held + weight.nbytes <= _room


def _bytes() -> int:
    return sum(copy.nbytes for copy in _copies.values())
