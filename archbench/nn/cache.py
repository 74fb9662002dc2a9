"""A cache of attention keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from archbench.errors import UsageError


class KVCache:
    """Keys and values of the positions read so far, of every layer, allocated once.

    Each step writes behind what is there and attends to a slice: nothing is concatenated, copied or masked.

    Attributes:
        keys, values: (L, B, G, S, D), S the capacity.
        length: positions read so far.
    """

    def __init__(
        self, *, layers: int, batch_size: int, heads: int, capacity: int, head_width: int, like: Tensor
    ) -> None:
        """An empty cache on the device of ``like``, in the dtype that a matrix product with it has here.

        ``like`` is a weight of the projection that makes the keys: its dtype, or that of autocast where it is on.
        """
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else like.dtype
        shape = (layers, batch_size, heads, capacity, head_width)
        self.keys = torch.empty(shape, dtype=dtype, device=like.device)
        self.values = torch.empty(shape, dtype=dtype, device=like.device)
        self.length = 0
        self._layers = list(zip(self.keys.unbind(), self.values.unbind(), strict=True))

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, G, T, D) behind the positions read so far; that layer's (B, G, length + T, D).

        ``length`` itself moves in :meth:`advance`, when every layer has written.
        """
        keys, values = self._layers[layer]
        end = self.length + k.shape[2]
        if end > keys.shape[2]:
            raise UsageError(
                "cache",
                f"position {end} is past its capacity of {keys.shape[2]}",
                "Make a cache of larger capacity, or slide the window",
            )
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, positions: int) -> None:
        self.length += positions

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values]
