"""Which elements a fused kernel's dropout keeps, in PyTorch: the twin of :mod:`archbench.kernels.fused.randomness`.

The bits of an element are those of Philox4x32-10 with the seed as its key, at the counter (column // 8, row, plane, 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from archbench.kernels.dropout import LEVELS

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF


def dropped_levels(p: float) -> int:
    """Of 65,536 values of 16 bits, how many drop an element: p is rounded to a multiple of 1/65,536."""
    return min(round(p * LEVELS), LEVELS - 1)


def kept_scale(dropped: int) -> float:
    """What kept elements are multiplied by."""
    return LEVELS / (LEVELS - dropped)


def new_seed() -> Tensor:
    """A seed, () int64, from torch's default generator of the CPU: no kernel runs, and the host waits for nothing.

    It needs more than 32 bits, always: kernels are compiled for a number's width.
    """
    return torch.randint(2**32, 2**63 - 1, ())


def new_seeds(count: int, generator: torch.Generator | None = None) -> Tensor:
    """(count,) int64: what as many calls of :func:`new_seed` give."""
    return torch.randint(2**32, 2**63 - 1, (count,), generator=generator)


_source: Callable[[], Tensor] = new_seed


@contextmanager
def seeds_from(source: Callable[[], Tensor]) -> Iterator[None]:
    """Within this context :func:`kernel_seed` asks ``source``."""
    global _source
    previous, _source = _source, source
    try:
        yield
    finally:
        _source = previous


def kernel_seed() -> Tensor:
    """The seed of a kernel's dropout, () int64: a new one on the CPU, or a place on the device that the host fills."""
    return _source()


def seed_argument(seed: Tensor | None) -> int | Tensor:
    """A seed as a kernel takes it: its number where the host knows it, else its place on the device."""
    if seed is None:
        return 0
    return seed if seed.is_cuda else int(seed)


def reference_keep(seed: int, planes: int, rows: int, columns: int, dropped: int, device: torch.device) -> Tensor:
    """Whether each element is kept, (planes, rows, columns)."""
    sizes = planes, rows, -(-columns // 8)
    plane, row, group = (torch.arange(size, device=device) for size in sizes)
    counter = group.expand(sizes), row[:, None].expand(sizes), plane[:, None, None].expand(sizes)
    words = torch.stack(philox(seed, *counter, torch.zeros_like(counter[0])), -1)  # (planes, rows, groups, 4)
    halves = torch.stack([words & 0xFFFF, words >> 16], -2)  # (planes, rows, groups, 2, 4)
    order = [0, 2, 1, 3]
    return halves[..., order].flatten(2)[..., :columns] >= dropped


def philox(seed: int, *counter: Tensor) -> list[Tensor]:
    """Philox4x32-10: four words of a counter of four words, all int64 below 2³²."""
    words, key = list(counter), [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(10):
        high0, low0 = _product(_MULTIPLIERS[0], words[0])
        high1, low1 = _product(_MULTIPLIERS[1], words[2])
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = [part + increment & _WORD for part, increment in zip(key, _INCREMENTS, strict=True)]
    return words


def _product(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a product, without the 64th bit, which int64 has not."""
    low, high = word & 0xFFFF, word >> 16
    lower = multiplier * low
    upper = multiplier * high + (lower >> 16)
    return upper >> 16, (upper & 0xFFFF) << 16 | lower & 0xFFFF
