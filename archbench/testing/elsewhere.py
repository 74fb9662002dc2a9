"""Tensors of the whole process: what decoding makes, or writes to, that belongs to no cache and no model."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Elsewhere:
    """The tensors that live when it is made."""

    def __init__(self) -> None:
        self._before = _living()  # kept alive, so that none of their addresses is used again
        self._versions = [_version(tensor) for tensor in self._before]

    def since(self, known: Iterable[Tensor]) -> tuple[int, int]:
        """Bytes of tensors made since then that still live, and of older ones written to; without those ``known``."""
        ours = {_place(tensor) for tensor in known}
        written = {
            _place(tensor): tensor.untyped_storage().nbytes()
            for tensor, version in zip(self._before, self._versions, strict=True)
            if _version(tensor) != version and _place(tensor) not in ours
        }
        ours |= {_place(tensor) for tensor in self._before}
        made = _bytes_without(ours)
        if made:  # perhaps they live only in a cycle that nothing reaches
            gc.collect()
            made = _bytes_without(ours)
        return made, sum(written.values())


def _living() -> list[Tensor]:
    """Tensors with memory that Python can reach."""
    kinds = _kinds(Tensor)
    found = [thing for thing in gc.get_objects() if type(thing) in kinds]
    return [tensor for tensor in found if tensor.layout == torch.strided and not tensor.is_meta and _place(tensor)]


def _kinds(kind: type) -> set[type]:
    return {kind}.union(*map(_kinds, type.__subclasses__(kind)))


def _bytes_without(places: set[int]) -> int:
    found = {_place(tensor): tensor.untyped_storage().nbytes() for tensor in _living()}
    return sum(size for place, size in found.items() if place not in places)


def _version(tensor: Tensor) -> int:
    """How often it was written to; 0 for one that does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _place(tensor: Tensor) -> int:
    """The address of its memory; 0 for one that has none, such as a fake tensor that somebody's compiler keeps."""
    if isinstance(tensor, FakeTensor):
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0
