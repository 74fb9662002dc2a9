"""The noise floor: how different two equal things look when they are measured like two different ones.

An A/A run: the same workload twice under two names, interleaved A B B A in one process, so that drifts hit both. Its
ratios B/A differ from 1 by noise alone; a smaller difference between two architectures means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from archbench.measure.clock import Clock, clock_for, seconds_of
from archbench.measure.steady import repeat_until_steady


@dataclass(frozen=True)
class NoiseFloor:
    """Time ratios of two equal workloads.

    Attributes:
        ratios: B/A of each pair, in order.
        low, high: 2.5 % and 97.5 % quantiles of the ratios: what one pair may show by chance.
        median: median ratio; about 1.
        median_low, median_high: 95 % confidence interval of the median, from order statistics: what all pairs
            together may show by chance. It narrows with the square root of their number.
    """

    ratios: list[float]
    low: float
    high: float
    median: float
    median_low: float
    median_high: float


def noise_floor(fn: Callable[[], object], clock: Clock, *, pairs: int = 40, warmup: int = 3) -> NoiseFloor:
    """Time ``fn`` against itself, ``pairs`` times, after warming up until it is steady."""
    assert pairs >= 6, "fewer pairs have no 95 % interval of the median"
    repeat_until_steady(fn, clock, warmup=warmup, repeats=1)
    ratios = []
    for pair in range(pairs):
        first, second = seconds_of(fn, clock), seconds_of(fn, clock)
        ratios.append(second / first if pair % 2 == 0 else first / second)
    return floor_of(ratios)


def floor_of(ratios: list[float]) -> NoiseFloor:
    """The distribution of ratios, and the interval of its median by the sign test (Conover 1999, section 3.2)."""
    from scipy.stats import binom  # here, because it takes half a second to import

    ordered = np.sort(np.asarray(ratios, dtype=np.float64))  # (n,)
    n = len(ordered)
    k = max(int(binom.ppf(0.025, n, 0.5)), 1)  # the k-th from either end bounds the median
    low, high = (float(value) for value in np.quantile(ordered, [0.025, 0.975]))
    return NoiseFloor(ratios, low, high, float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k]))


def fixed_workload(device: torch.device | str, *, width: int = 256, rows: int = 128) -> Callable[[], object]:
    """A small training step that never changes: two linear layers, GELU, backward. A few milliseconds on a CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).to(device)  # (rows, C)
    up = torch.randn(width, 4 * width, generator=generator).to(device).requires_grad_()  # (C, F)
    down = torch.randn(4 * width, width, generator=generator).to(device).requires_grad_()  # (F, C)

    def step() -> object:
        loss = (torch.nn.functional.gelu(x @ up) @ down).square().mean()
        return torch.autograd.grad(loss, (up, down))

    return step


def measure_noise(device: torch.device | str, *, pairs: int = 40) -> NoiseFloor:
    """The noise floor of a device, on :func:`fixed_workload`."""
    return noise_floor(fixed_workload(device), clock_for(device), pairs=pairs)
