"""Training batches: a pure function of the tokens, the seed and the step, the same for every architecture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from archbench.errors import DataError, UsageError

if TYPE_CHECKING:
    from archbench.config import SamplingName


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
        return Batch(self.inputs.to(device), self.targets.to(device))


class BatchSampler:
    """Blocks of T+1 tokens in random order, epoch by epoch.

    The tokens form a ring: after the last comes the first, which in a prepared data set is a separator, as after any
    document. An epoch cuts the ring at a random place into N // T blocks that overlap by one token, so that each
    transition is trained once, except N mod T of them, which vary by epoch. A batch may span two epochs.

    Args:
        tokens: shape (N,), any integer type; may be memory-mapped.
        batch_size: B, the sequences of one update.
        context_length: T.
        sampling: ``epochs``, as above, or ``random``: independent random positions, as in nanoGPT's ``get_batch``;
            after as many blocks as an epoch has, a share of 1/e of the text has not been seen.

    Raises:
        DataError: there are fewer than T+1 tokens.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.integer],
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
        self._starts = lru_cache(maxsize=2)(self._starts_of_epoch)

    def batch(self, step: int) -> Batch:
        """The batch of update ``step``, which counts from 0."""
        starts = self._random_starts(step) if self.sampling == "random" else self._next_starts(step)
        places = starts[:, None] + self._within
        blocks = torch.from_numpy(self.tokens.take(places, mode="wrap").astype(np.int64))  # (B, T + 1)
        return Batch(blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous())

    def _random_starts(self, step: int) -> npt.NDArray[np.int64]:
        random = np.random.default_rng([self.seed, step, 1])
        return random.integers(len(self.tokens) - self.context_length, size=self.batch_size)

    def _next_starts(self, step: int) -> npt.NDArray[np.int64]:
        first = step * self.batch_size
        epoch, position = divmod(first, self.blocks_per_epoch)
        starts = self._starts(epoch)[position : position + self.batch_size]
        while len(starts) < self.batch_size:
            epoch += 1
            starts = np.concatenate([starts, self._starts(epoch)[: self.batch_size - len(starts)]])
        return starts

    def _starts_of_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        random = np.random.default_rng([self.seed, epoch])
        cut = random.integers(len(self.tokens))
        return cut + self.context_length * random.permutation(self.blocks_per_epoch)
