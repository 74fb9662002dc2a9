"""Which blocks, warps and stages each kernel runs with: a fixed table, so that reruns and torch.compile meet one kernel.

How the figures were chosen is told in docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from archbench.errors import DeviceError


@dataclass(frozen=True)
class Configuration:
    """How one kernel is cut up.

    Attributes:
        block_t: queries a block.
        block_s: keys a block.
        warps: warps a program.
        stages: depth of the loads' software pipeline.
        tma: blocks in the loop come through tensor descriptors (NVIDIA's TMA); only where D is a power of two.
        options: further options of Triton's compiler.
    """

    block_t: int
    block_s: int
    warps: int
    stages: int
    tma: bool = False
    options: Mapping[str, int | str] = field(default_factory=dict)


FORWARD, KEY_GRADIENT, QUERY_GRADIENT = "forward", "key_gradient", "query_gradient"
KERNELS = (FORWARD, KEY_GRADIENT, QUERY_GRADIENT)

FAMILIES = {
    "sm_80": "sm_80",
    "sm_86": "sm_86",
    "sm_89": "sm_86",
    "sm_120": "sm_86",
    "sm_90": "sm_90",
    "sm_100": "sm_100",
    "gfx942": "gfx942",
}
"""Chip -> family. sm_86, sm_89 and sm_120 have 99 KiB of shared memory a block, and the tensor cores of warps."""

WIDTHS = (32, 64, 96, 128, 256)
"""A head of width D has the row of the first of these that is not below D."""

_C = Configuration

HALF: Mapping[str, Mapping[str, tuple[Configuration, ...]]] = {
    "sm_80": {
        FORWARD: (_C(128, 64, 4, 3), _C(128, 64, 4, 3), _C(128, 64, 4, 3), _C(128, 64, 8, 3), _C(64, 32, 4, 2)),
        KEY_GRADIENT: (_C(64, 128, 8, 2), _C(64, 128, 8, 2), _C(32, 128, 8, 2), _C(32, 128, 8, 2), _C(32, 32, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(128, 32, 8, 2), _C(64, 32, 8, 2)),
    },
}

FLOAT32: Mapping[str, Mapping[str, tuple[Configuration, ...]]] = {
    family: {
        FORWARD: (_C(64, 32, 4, 2),) * 4 + (_C(32, 32, 4, 1),),
        KEY_GRADIENT: (_C(32, 32, 4, 2),) * 4 + (_C(16, 16, 4, 1),),
        QUERY_GRADIENT: (_C(32, 32, 4, 2),) * 4 + (_C(16, 16, 4, 1),),
    }
    for family in ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")
}


def width_index(D: int) -> int:
    """The column of the table that a head of width D (at most 256) has."""
    return next(i for i, width in enumerate(WIDTHS) if width >= D)


def tile_widths(D: int) -> tuple[int, int]:
    """(D1, D2), D1 the largest power of two in D, D2 what covers the rest: 0, or a power of two of at least 16."""
    first = 1 << (D.bit_length() - 1)
    rest = D - first
    return first, 0 if rest == 0 else max(16, 1 << (rest - 1).bit_length())


def configuration_for(chip: str, kernel: str, D: int, dtype: torch.dtype) -> Configuration:
    """The table's configuration.

    Raises:
        DeviceError: the table has no such chip.
    """
    if chip not in FAMILIES:
        raise DeviceError("attention 'triton'", f"its table has no configuration for {chip}", "Use sdpa")
    table = FLOAT32 if dtype == torch.float32 else HALF
    return table.get(FAMILIES[chip], table["sm_80"])[kernel][width_index(D)]
