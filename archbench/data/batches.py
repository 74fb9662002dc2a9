"""Training batches: a pure function of the tokens, the seed and the step, the same for every architecture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from archbench.data.token_stream import Reading, Tokens
from archbench.errors import DataError, UsageError

if TYPE_CHECKING:
    from archbench.config import SamplingName

MOST_LISTED = 1 << 22
"""Blocks of an epoch up to which their order is an array; above, it is computed place by place, in no memory."""
_ROUNDS = 6


@dataclass(frozen=True)
class Batch:
    """Token ids, and the token that follows each of them.

    Attributes:
        inputs: (B, T) int64.
        targets: (B, T) int64; ``targets[b, t]`` follows ``inputs[b, t]``.
    """

    inputs: Tensor
    targets: Tensor

    def split(self, n: int) -> list[Batch]:
        """``n`` micro-batches of equal size, in order.

        Raises:
            UsageError: the number of sequences is not divisible by ``n``.
        """
        B = self.inputs.shape[0]
        if n < 1 or B % n:
            raise UsageError(
                "n", f"{B} sequences do not split into {n} equal micro-batches", f"Choose a divisor of {B}"
            )
        return [Batch(*pair) for pair in zip(self.inputs.chunk(n), self.targets.chunk(n), strict=True)]

    def to(self, device: torch.device | str) -> Batch:
        """The batch on that device. Neither the host nor the GPU waits for the other on the way to a GPU."""
        inputs, targets = (_pinned(tensor, torch.device(device)) for tensor in (self.inputs, self.targets))
        return Batch(inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True))

    def copy_to(self, other: Batch) -> None:
        """Write the tokens into a batch of the same sizes on any device, without waiting as in :meth:`to`."""
        for own, there in ((self.inputs, other.inputs), (self.targets, other.targets)):
            there.copy_(_pinned(own, there.device), non_blocking=True)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """On the way from the host to a GPU, a copy in pinned memory.

    A copy from pageable memory blocks the host until the GPU has done all earlier work. torch keeps a pinned block from
    being used again before its copy is done.
    """
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


class BatchSampler:
    """Blocks of T+1 tokens in random order, epoch by epoch.

    The tokens form a ring: after the last comes the first, which in a prepared data set is a separator, as after any
    document. An epoch cuts the ring at a random place into N // T blocks that overlap by one token, so that each
    transition is trained once, except N mod T of them, which vary by epoch. A batch may span two epochs.

    Args:
        tokens: shape (N,), any integer type; may be memory-mapped, and of any length: little of it is in memory.
        batch_size: B, the sequences of one update.
        context_length: T.
        sampling: ``epochs``, as above, or ``random``: independent random positions, as in nanoGPT's ``get_batch``;
            after as many blocks as an epoch has, a share of 1/e of the text has not been seen.

    Raises:
        DataError: there are fewer than T+1 tokens.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        sampling: SamplingName = "epochs",
    ) -> None:
        N, T = len(tokens), context_length
        if N < T + 1:
            raise DataError(
                "training text",
                f"its {N} tokens are shorter than one context of {T} and the token after it",
                f"Give a longer text, or a context_length of at most {max(N - 1, 0)}",
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.context_length = T
        self.seed = seed
        self.sampling = sampling
        self.blocks_per_epoch = N // T
        self._within = np.arange(T + 1)
        self._reading = Reading(tokens)
        self._order = lru_cache(maxsize=2)(self._order_of_epoch)

    def batch(self, step: int, rows: npt.NDArray[np.int64] | None = None) -> Batch:
        """The batch of update ``step``, which counts from 0; only these of its rows are read, None for all."""
        starts = self._random_starts(step) if self.sampling == "random" else self._next_starts(step)
        starts = starts if rows is None else starts[rows]
        places = starts[:, None] + self._within
        read = [self.tokens.take(some, mode="wrap").astype(np.int64) for some in self._reading.parts(places)]
        blocks = torch.from_numpy(np.concatenate(read))  # (B, T + 1)
        return Batch(blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous())

    def _random_starts(self, step: int) -> npt.NDArray[np.int64]:
        random = np.random.default_rng([self.seed, step, 1])
        return random.integers(len(self.tokens) - self.context_length, size=self.batch_size)

    def _next_starts(self, step: int) -> npt.NDArray[np.int64]:
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(numbers, self.blocks_per_epoch)
        return np.concatenate([self._starts(epoch, places[epochs == epoch]) for epoch in np.unique(epochs).tolist()])

    def _starts(self, epoch: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the blocks begin that have these places in the epoch's order."""
        if self.blocks_per_epoch <= MOST_LISTED:
            cut, order = self._order(epoch)
            return cut + self.context_length * order[places]
        random = np.random.default_rng([self.seed, epoch, 2])
        cut = int(random.integers(len(self.tokens)))
        keys = random.integers(1 << 64, size=_ROUNDS, dtype=np.uint64)
        return cut + self.context_length * shuffled(places, self.blocks_per_epoch, keys)

    def _order_of_epoch(self, epoch: int) -> tuple[int, npt.NDArray[np.int64]]:
        random = np.random.default_rng([self.seed, epoch])
        return int(random.integers(len(self.tokens))), random.permutation(self.blocks_per_epoch)


def shuffled(places: npt.NDArray[np.int64], n: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Where a permutation of 0 … n - 1 that ``keys`` choose puts ``places``; no other place is computed.

    A Feistel network (Luby & Rackoff 1988) permutes the numbers of an even number of bits; it is repeated until a
    number is below n, which makes it a permutation of those (Black & Rogaway 2002, cycle walking).
    """
    half = np.uint64(-(-(n - 1).bit_length() // 2))
    mask = np.uint64((1 << int(half)) - 1)
    found = places.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        found[outside] = left << half | right
        outside = found >= n
    return found.astype(np.int64)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): each bit depends on each."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
