"""Which blocks, warps and stages each kernel runs with.

A fixed table, so that reruns, and torch.compile, meet one kernel. docs/kernels.md tells how its entries were chosen.
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

LIKE = {"sm_87": "sm_86", "sm_103": "sm_100", "sm_121": "sm_86"}
"""Chip -> family, for chips that are compiled for but not among those whose code was read: each has its family's tensor
cores, and no less shared memory."""

WIDTHS = (32, 64, 96, 128, 256)
"""A head of width D has the row of the first of these that is not below D."""

_C = Configuration


def _T(block_t: int, block_s: int, warps: int, stages: int) -> Configuration:  # noqa: N802
    return Configuration(block_t, block_s, warps, stages, tma=True)


HALF: Mapping[str, Mapping[str, tuple[Configuration, ...]]] = {
    "sm_80": {
        FORWARD: (_C(128, 64, 4, 3), _C(128, 64, 4, 3), _C(128, 64, 8, 3), _C(128, 64, 8, 3), _C(64, 64, 8, 2)),
        KEY_GRADIENT: (_C(64, 128, 8, 2), _C(32, 128, 8, 2), _C(16, 64, 4, 2), _C(64, 64, 8, 2), _C(16, 64, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(128, 32, 8, 2), _C(64, 32, 8, 2)),
    },
    "sm_86": {
        FORWARD: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(64, 32, 8, 2)),
        KEY_GRADIENT: (_C(64, 128, 8, 2), _C(32, 128, 8, 2), _C(16, 64, 4, 2), _C(32, 64, 8, 2), _C(16, 64, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(64, 32, 4, 2), _C(64, 16, 8, 2)),
    },
    "sm_90": {
        FORWARD: (_T(128, 64, 4, 3), _T(128, 64, 4, 3), _C(128, 64, 8, 3), _T(128, 128, 8, 2), _T(128, 64, 8, 2)),
        KEY_GRADIENT: (_T(64, 64, 4, 2), _T(64, 64, 4, 2), _C(32, 64, 8, 2), _T(64, 128, 8, 2), _T(32, 64, 8, 2)),
        QUERY_GRADIENT: (_T(128, 64, 4, 2), _T(128, 64, 4, 2), _C(128, 64, 8, 2), _T(128, 64, 8, 2), _T(128, 32, 8, 2)),
    },
    "sm_100": {
        FORWARD: (_T(128, 64, 4, 3), _T(128, 64, 4, 3), _C(128, 64, 8, 2), _T(128, 128, 8, 2), _T(128, 64, 8, 1)),
        KEY_GRADIENT: (_T(64, 128, 4, 2), _T(64, 128, 8, 2), _C(32, 64, 4, 2), _T(64, 128, 8, 2), _T(32, 64, 8, 1)),
        QUERY_GRADIENT: (_T(128, 64, 4, 2), _T(128, 64, 8, 2), _C(128, 64, 8, 2), _T(128, 64, 8, 2), _T(64, 32, 8, 1)),
    },
    "gfx942": {
        FORWARD: (_C(128, 64, 4, 1), _C(128, 64, 4, 1), _C(128, 32, 4, 1), _C(128, 64, 4, 1), _C(64, 32, 4, 1)),
        KEY_GRADIENT: (_C(64, 64, 4, 1), _C(64, 64, 4, 1), _C(32, 64, 4, 1), _C(32, 64, 4, 1), _C(16, 64, 4, 1)),
        QUERY_GRADIENT: (_C(128, 64, 4, 1), _C(128, 64, 4, 1), _C(64, 32, 4, 1), _C(64, 64, 4, 1), _C(32, 32, 4, 1)),
    },
}
"""For float16 and bfloat16: by family and kernel, one for each of WIDTHS."""

FLOAT32: Mapping[str, Mapping[str, tuple[Configuration, ...]]] = {
    family: {
        FORWARD: (_C(32, 32, 4, 2), _C(32, 32, 4, 2), _C(32, 32, 8, 2), _C(16, 32, 4, 2), _C(16, 16, 4, 1)),
        KEY_GRADIENT: (_C(16, 16, 4, 2), _C(16, 16, 4, 2), _C(16, 16, 4, 1), _C(16, 16, 4, 1), _C(16, 16, 8, 1)),
        QUERY_GRADIENT: (_C(32, 32, 4, 2), _C(32, 32, 4, 2), _C(32, 16, 8, 1), _C(32, 16, 8, 1), _C(16, 16, 8, 1)),
    }
    for family in HALF
}
"""For float32, whose exact products need no tensor core and many registers: small blocks, the same for every family."""


def width_index(D: int) -> int:
    """The column of the table that a head of width D (at most 256) has."""
    return next(i for i, width in enumerate(WIDTHS) if width >= D)


def tile_widths(D: int) -> tuple[int, int]:
    """(D1, D2), D1 the largest power of two in D, D2 what covers the rest: 0, or a power of two of at least 16."""
    first = 1 << (D.bit_length() - 1)
    rest = D - first
    return first, 0 if rest == 0 else max(16, 1 << (rest - 1).bit_length())


def chip_of(device: torch.device) -> str:
    """``sm_90`` …, or ``gfx942``; for the interpreter, which has no chip, ``sm_80``."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def family_of(chip: str) -> str | None:
    """Whose row of the table ``chip`` has; None if it has none."""
    return FAMILIES.get(chip) or LIKE.get(chip)


def configuration_for(chip: str, kernel: str, D: int, dtype: torch.dtype) -> Configuration:
    """The table's configuration.

    Raises:
        DeviceError: the table has no such chip.
    """
    family = family_of(chip)
    if family is None:
        raise DeviceError("attention 'triton'", f"its table has no configuration for {chip}", "Use sdpa")
    table = FLOAT32 if dtype == torch.float32 else HALF
    return table[family][kernel][width_index(D)]
