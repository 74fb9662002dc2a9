"""A model's memory of the positions read so far: keys and values, or recurrent states.

Each also takes steps of static shapes (:class:`archbench.protocols.StaticCache`): one position at a time, at addresses
that do not change, with its number in a tensor on the device, so that a CUDA graph can hold the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from archbench.errors import UsageError


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype of a matrix product with the weight ``like``: its own, or autocast's if that is on."""
    kind = like.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else like.dtype


SMALLEST_REACH = 128
"""Slots that a static step attends to at the least; then 256, 512 and so on."""


def bucket(positions: int) -> int:
    """The smallest of 128, 256, 512 … that holds so many positions."""
    return max(SMALLEST_REACH, 1 << (positions - 1).bit_length())


class KVCache:
    """Keys and values of the positions read so far, of every layer, allocated once.

    Without a window each step appends and attends to a slice: nothing is concatenated, copied or masked. With a window
    W a ring keeps only W positions: position p is in slot p mod W. A single new token attends to the unordered ring,
    because attention does not depend on the order of keys; several tokens attend to the kept positions in order, and
    to themselves.

    Attributes:
        keys, values: (L, B, G, S, D), S the capacity, or W if that is smaller.
        length: positions read so far.
        position: (1,) int64, the position that a static step reads; None outside of one.
        bias: (1, S), 0 where a static step attends and -inf elsewhere, in the cache's dtype; None outside of one.
    """

    position: Tensor | None = None
    bias: Tensor | None = None

    def __init__(
        self,
        *,
        layers: int,
        batch_size: int,
        heads: int,
        capacity: int,
        head_width: int,
        like: Tensor,
        window: int | None = None,
    ) -> None:
        """An empty cache on the device of ``like``, a weight of the keys' projection, in the dtype of its products."""
        dtype = product_dtype(like)
        self.capacity = capacity
        self.slots = capacity if window is None else min(capacity, window)
        shape = (layers, batch_size, heads, self.slots, head_width)
        self.keys = torch.empty(shape, dtype=dtype, device=like.device)
        self.values = torch.empty(shape, dtype=dtype, device=like.device)
        self.length = 0
        self._slot: Tensor | None = None  # (1,), where a static step writes
        self._reach = self.slots
        self._layers = list(zip(self.keys.unbind(), self.values.unbind(), strict=True))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, G, T, D) of a layer; returns its keys and values (B, G, S, D) to attend to.

        S is length + T, or with a window those positions that the T queries can see; the last T are the new ones.
        :meth:`advance` increases ``length`` after every layer has written.
        """
        keys, values = self._layers[layer]
        if self._slot is not None:
            keys.index_copy_(2, self._slot, k.to(keys.dtype))
            values.index_copy_(2, self._slot, v.to(values.dtype))
            return keys[:, :, : self._reach], values[:, :, : self._reach]
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise UsageError(
                "cache",
                f"position {end} is past its capacity of {self.capacity}",
                "Make a cache of larger capacity, or slide the window",
            )
        if end <= self.slots:
            keys[:, :, self.length : end] = k
            values[:, :, self.length : end] = v
            return keys[:, :, :end], values[:, :, :end]
        return self._append_around(keys, k), self._append_around(values, v)

    def _append_around(self, ring: Tensor, new: Tensor) -> Tensor:
        """Write new (B, G, T, D) into a ring (B, G, W, D), past its end; returns what to attend to."""
        start, T, W = self.length, new.shape[2], self.slots
        if T == 1:
            ring[:, :, start % W] = new[:, :, 0]
            return ring
        kept = min(start, W - 1)  # what the first new position sees besides itself
        slots = torch.arange(start - kept, start, device=ring.device) % W
        seen = torch.cat([ring[:, :, slots], new], dim=2)  # (B, G, kept + T, D)
        last = min(T, W)
        ring[:, :, torch.arange(start + T - last, start + T, device=ring.device) % W] = new[:, :, T - last :]
        return seen

    def advance(self, positions: int) -> None:
        if self.position is None:
            self.length += positions

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values]

    def reach(self, positions: int) -> int:
        """Slots that a static step attends to when it reads the last of so many positions."""
        return min(bucket(positions), self.slots)

    def hold(self, position: Tensor, reach: int) -> None:
        """Begin a static step at ``position``, which attends to the first ``reach`` slots: those filled by then."""
        self.position, self._reach = position, reach
        self._slot = position % self.slots
        unseen = torch.arange(reach, device=position.device) > position  # with a ring that is full: none
        self.bias = torch.zeros(1, reach, dtype=self.keys.dtype, device=position.device)
        self.bias.masked_fill_(unseen, -torch.inf)

    def release(self) -> None:
        self.position = self.bias = self._slot = None

    def clear(self) -> None:
        """Empty; slots without a position hold zeros, since a weight of zero does not cancel a NaN."""
        self.length = 0
        self.keys.zero_()
        self.values.zero_()


class StateCache:
    """Recurrent states of fixed size, one tuple of tensors per layer, zero before the first position.

    Attributes:
        layers: each layer's tensors, overwritten in place.
        length: positions read so far.
        position: (1,) int64, the position that a static step reads; None outside of one.
    """

    position: Tensor | None = None

    def __init__(self, layers: Sequence[tuple[Tensor, ...]]) -> None:
        self.layers = list(layers)
        self.length = 0

    def advance(self, positions: int) -> None:
        if self.position is None:
            self.length += positions

    def tensors(self) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in layer]

    def reach(self, positions: int) -> int:
        return 0  # a state is read whole

    def hold(self, position: Tensor, reach: int) -> None:
        self.position = position

    def release(self) -> None:
        self.position = None

    def clear(self) -> None:
        self.length = 0
        for tensor in self.tensors():
            tensor.zero_()


class JoinedCache:
    """Several caches of one model, which read the same positions.

    Attributes:
        parts: the caches, :class:`KVCache` or :class:`StateCache`.
        length: positions read so far.
    """

    def __init__(self, *parts: KVCache | StateCache) -> None:
        self.parts = parts

    @property
    def length(self) -> int:
        return self.parts[0].length

    @property
    def position(self) -> Tensor | None:
        return self.parts[0].position

    def advance(self, positions: int) -> None:
        for part in self.parts:
            part.advance(positions)

    def tensors(self) -> list[Tensor]:
        return [tensor for part in self.parts for tensor in part.tensors()]

    def reach(self, positions: int) -> int:
        return max(part.reach(positions) for part in self.parts)

    def hold(self, position: Tensor, reach: int) -> None:
        for part in self.parts:
            part.hold(position, reach)

    def release(self) -> None:
        for part in self.parts:
            part.release()

    def clear(self) -> None:
        for part in self.parts:
            part.clear()
