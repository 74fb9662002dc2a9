"""A launch made again with other tensors of the same kind: nothing is built, bound, specialised or looked up anew.

A launch through ``triton.jit`` costs the host more than a short kernel costs the GPU: it builds some forty arguments,
looks at each to find the compiled kernel, and checks descriptors. All of that depends only on what :func:`kind_of`
says, so the first launch of a kind keeps its compiled kernel and its numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from archbench.kernels.launch import Launch

MOST_KINDS = 1024
"""Kinds of launches that are kept; then all are forgotten. Decoding in windows would make one a length."""

Kind = tuple[Hashable, ...]

_kept: dict[Kind, list[RepeatedLaunch]] = {}


def kind_of(name: str, tensors: Sequence[Tensor], *others: Hashable) -> Kind:
    """All that launches of these tensors depend on but their addresses, of which only the alignment counts."""
    first = tensors[0]
    return (
        name, others, first.device.index, first.dtype,
        *[(x.shape, x.stride(), x.data_ptr() & 15) for x in tensors],
    )  # fmt: skip


def launched_again(kind: Kind, tensors: Sequence[Tensor], seed: int | Tensor = 0) -> bool:
    """Make the launches that :func:`keep_launches` kept of this kind, with that seed; False if there are none."""
    kept = _kept.get(kind)
    if kept is None:
        return False
    for one in kept:
        one.run(tensors, seed)
    return True


def keep_launches(kind: Kind, tensors: Sequence[Tensor], launches: Sequence[Launch], compiled: Sequence[Any]) -> None:
    """Keep launches that were made; ``compiled`` is what each returned, None in Triton's interpreter."""
    if all(kernel is not None for kernel in compiled):
        if len(_kept) >= MOST_KINDS:
            _kept.clear()
        _kept[kind] = [RepeatedLaunch(one, kernel, tensors) for one, kernel in zip(launches, compiled, strict=True)]


class RepeatedLaunch:
    """One launch without its tensors.

    Args:
        launch: as it was made.
        compiled: the ``CompiledKernel`` that it returned.
        tensors: those that change; it holds none of them.
    """

    def __init__(self, launch: Launch, compiled: Any, tensors: Sequence[Tensor]) -> None:
        self.start = compiled[(*launch.grid, 1, 1)[:3]]
        self.values = [launch.arguments[name] for name in launch.kernel.arg_names]
        names = launch.kernel.arg_names
        self.seed_place = names.index("seed") if "seed" in names else None
        self.places: list[tuple[int, int]] = []
        self.descriptors: list[tuple[int, int, dict[str, Any]]] = []
        number = {id(tensor): index for index, tensor in enumerate(tensors)}
        for place, value in enumerate(self.values):
            if place == self.seed_place:
                self.values[place] = None
            elif isinstance(value, Tensor):
                self.places.append((place, number[id(value)]))
                self.values[place] = None
            elif isinstance(value, TensorDescriptor):
                self.descriptors.append((place, number[id(value.base)], {**vars(value), "base": None}))
                self.values[place] = None

    def run(self, tensors: Sequence[Tensor], seed: int | Tensor) -> None:
        """Launch it on these tensors, on the current GPU and stream."""
        values = self.values.copy()
        if self.seed_place is not None:
            values[self.seed_place] = seed
        for place, index in self.places:
            values[place] = tensors[index]
        for place, index, fields in self.descriptors:
            descriptor = object.__new__(TensorDescriptor)  # the checks of its constructor were passed by this kind
            vars(descriptor).update(fields)
            descriptor.base = tensors[index]
            values[place] = descriptor
        self.start(*values)
