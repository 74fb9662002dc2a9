"""A model's memory of the positions read so far: keys and values, or recurrent states."""

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


class KVCache:
    """Keys and values of the positions read so far, of every layer, allocated once.

    Without a window each step appends and attends to a slice: nothing is concatenated, copied or masked. With a window
    W a ring keeps only W positions: position p is in slot p mod W. A single new token attends to the unordered ring,
    because attention does not depend on the order of keys; several tokens attend to the kept positions in order, and
    to themselves.

    Attributes:
        keys, values: (L, B, G, S, D), S the capacity, or W if that is smaller.
        length: positions read so far.
    """

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
        self._layers = list(zip(self.keys.unbind(), self.values.unbind(), strict=True))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, G, T, D) of a layer; returns its keys and values (B, G, S, D) to attend to.

        S is length + T, or with a window those positions that the T queries can see; the last T are the new ones.
        :meth:`advance` increases ``length`` after every layer has written.
        """
        keys, values = self._layers[layer]
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
        self.length += positions

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values]


class StateCache:
    """Recurrent states of fixed size, one tuple of tensors per layer, zero before the first position.

    Attributes:
        layers: each layer's tensors, overwritten in place.
        length: positions read so far.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, ...]]) -> None:
        self.layers = list(layers)
        self.length = 0

    def advance(self, positions: int) -> None:
        self.length += positions

    def tensors(self) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in layer]
