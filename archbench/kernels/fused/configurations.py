"""The blocks, warps and stages of each kernel.

A fixed table, so that reruns and torch.compile use the same kernel. docs/explanation/kernels.md
explains how entries were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from archbench.errors import DeviceError


@dataclass(frozen=True)
class Configuration:
    """How one kernel divides its work.

    Attributes:
        block_t: queries per block.
        block_s: keys per block.
        warps: warps per program.
        stages: depth of the loads' software pipeline.
        tma: the loop loads blocks through tensor descriptors (NVIDIA's TMA); only if D is a power of two.
        programs: of the forward kernel on each multiprocessor, sharing all blocks of queries; 0: one program a block.
        specialized: some warps of the forward kernel load what the others multiply; needs ``tma`` and ``programs``.
    """

    block_t: int
    block_s: int
    warps: int
    stages: int
    tma: bool = False
    programs: int = 0
    specialized: bool = False


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
"""Chip -> family. sm_86, sm_89 and sm_120 have 99 KiB of shared memory per block, and tensor cores per warp."""

LIKE = {"sm_87": "sm_86", "sm_103": "sm_100", "sm_121": "sm_86"}
"""Chip -> family, for supported chips that the static check does not cover: each has its family's tensor cores, and at
least as much shared memory."""

_C = Configuration


def _T(block_t: int, block_s: int, warps: int, stages: int) -> Configuration:  # noqa: N802
    return Configuration(block_t, block_s, warps, stages, tma=True)


Table = Mapping[str, Mapping[str, tuple[Configuration, ...]]]
"""By family and kernel: one configuration for each of four widths."""

WHOLE_WIDTHS = (32, 64, 128, 256)
"""A head of width D uses the entry of the first of these that is at least D."""

WHOLE: Table = {
    "sm_80": {
        FORWARD: (_C(128, 64, 4, 3), _C(128, 64, 4, 3), _C(128, 64, 8, 3), _C(64, 64, 8, 2)),
        KEY_GRADIENT: (_C(64, 128, 8, 2), _C(32, 128, 8, 2), _C(64, 64, 8, 2), _C(16, 64, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(64, 32, 8, 2)),
    },
    "sm_86": {
        FORWARD: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(64, 32, 8, 2)),
        KEY_GRADIENT: (_C(64, 128, 8, 2), _C(32, 128, 8, 2), _C(32, 64, 8, 2), _C(16, 64, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(64, 32, 4, 2), _C(64, 16, 8, 2)),
    },
    "sm_90": {
        FORWARD: (_T(128, 64, 4, 3), _T(128, 64, 4, 3), _T(128, 128, 8, 2), _T(128, 64, 8, 2)),
        KEY_GRADIENT: (_T(64, 64, 4, 2), _T(64, 64, 4, 2), _T(64, 128, 8, 2), _T(32, 64, 8, 2)),
        QUERY_GRADIENT: (_T(128, 64, 4, 2), _T(128, 64, 4, 2), _T(128, 64, 8, 2), _T(128, 32, 8, 2)),
    },
    "sm_100": {
        FORWARD: (_T(128, 64, 4, 3), _T(128, 64, 4, 3), _T(128, 128, 8, 2), _T(128, 64, 8, 1)),
        KEY_GRADIENT: (_T(64, 128, 8, 2), _T(64, 128, 8, 2), _T(64, 128, 8, 2), _T(32, 64, 8, 1)),
        QUERY_GRADIENT: (_T(128, 64, 4, 2), _T(128, 64, 8, 2), _T(128, 64, 8, 2), _T(64, 32, 8, 1)),
    },
    "gfx942": {
        FORWARD: (_C(128, 64, 4, 1), _C(128, 64, 4, 1), _C(128, 64, 4, 1), _C(64, 32, 4, 1)),
        KEY_GRADIENT: (_C(64, 64, 4, 1), _C(64, 64, 4, 1), _C(32, 64, 4, 1), _C(16, 64, 4, 1)),
        QUERY_GRADIENT: (_C(128, 64, 4, 1), _C(128, 64, 4, 1), _C(64, 64, 4, 1), _C(32, 32, 4, 1)),
    },
}
"""Half precision, D a power of two: a head is one tile."""

PERSISTENT: Mapping[str, Mapping[int, tuple[Configuration, ...]]] = {
    "sm_90": {
        64: (replace(_T(128, 64, 4, 3), programs=2), replace(_T(128, 64, 4, 3), programs=1, specialized=True)),
        128: (replace(_T(128, 64, 8, 3), programs=1), replace(_T(128, 128, 4, 2), programs=1, specialized=True)),
    },
    "sm_100": {
        64: (replace(_T(128, 64, 4, 3), programs=1, specialized=True),),
        128: (replace(_T(128, 128, 8, 2), programs=1, specialized=True),),
    },
}
"""Family -> head width -> forward kernels that autotuning may choose. Half precision, without dropout. No GPU has run
them, so none is the table's choice."""

SPLIT_WIDTHS = (64, 96, 128, 256)

SPLIT: Table = {
    "sm_80": {
        FORWARD: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(64, 16, 8, 2)),
        KEY_GRADIENT: (_C(32, 64, 8, 2), _C(16, 64, 4, 2), _C(32, 32, 8, 2), _C(16, 32, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(64, 32, 4, 2), _C(64, 16, 8, 2)),
    },
    "sm_86": {
        FORWARD: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(64, 16, 8, 2)),
        KEY_GRADIENT: (_C(32, 64, 8, 2), _C(16, 32, 4, 2), _C(32, 32, 8, 2), _C(16, 32, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 32, 8, 2), _C(64, 32, 4, 2), _C(64, 16, 8, 2)),
    },
    "sm_90": {
        FORWARD: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(64, 64, 8, 2)),
        KEY_GRADIENT: (_C(32, 64, 8, 2), _C(32, 64, 8, 2), _C(32, 32, 8, 2), _C(16, 32, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(64, 32, 8, 2)),
    },
    "sm_100": {
        FORWARD: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(64, 64, 8, 2)),
        KEY_GRADIENT: (_C(32, 64, 4, 2), _C(32, 64, 4, 2), _C(32, 32, 8, 2), _C(16, 32, 8, 2)),
        QUERY_GRADIENT: (_C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(128, 64, 8, 2), _C(64, 32, 8, 2)),
    },
    "gfx942": {
        FORWARD: (_C(128, 64, 4, 1), _C(128, 32, 4, 1), _C(128, 32, 4, 1), _C(64, 32, 4, 1)),
        KEY_GRADIENT: (_C(32, 64, 4, 1), _C(32, 64, 4, 1), _C(32, 32, 4, 1), _C(16, 32, 4, 1)),
        QUERY_GRADIENT: (_C(128, 64, 4, 1), _C(64, 32, 4, 1), _C(64, 32, 4, 1), _C(32, 32, 4, 1)),
    },
}
"""Half precision, a head of two tiles; also used if WHOLE needs descriptors and none are possible."""

FLOAT32: Table = {
    family: {
        # On sm_90 (16, 32) at D = 96 spills a register in its loop: with four warps by Triton 3.6, with eight by 3.8.
        FORWARD: (
            _C(32, 32, 4, 2),
            _C(32, 32, 8, 2) if family == "sm_90" else _C(16, 32, 4, 2),
            _C(16, 32, 8, 2),
            _C(16, 16, 8, 1),
        ),
        KEY_GRADIENT: (_C(16, 16, 4, 2), _C(16, 16, 4, 1), _C(16, 16, 4, 1), _C(16, 16, warps, 1)),
        QUERY_GRADIENT: (_C(32, 32, 4, 2), _C(32, 16, 8, 1), _C(32, 16, 8, 1), _C(16, 16, warps, 1)),
    }
    for family in WHOLE
    for warps in ([4] if family == "gfx942" else [8])  # its warps have 64 threads
}
"""Float32, at SPLIT_WIDTHS: exact products use no tensor core and many registers."""


def _entry(widths: tuple[int, ...], D: int) -> int:
    return next(number for number, width in enumerate(widths) if width >= D)


def tile_widths(D: int) -> tuple[int, int]:
    """(D1, D2): the largest power of two up to D, and 0 or a power of two of at least 16 that covers the rest."""
    first = 1 << (D.bit_length() - 1)
    rest = D - first
    return first, 0 if rest == 0 else max(16, 1 << (rest - 1).bit_length())


def chip_of(device: torch.device) -> str:
    """``sm_90`` … or ``gfx942``; ``sm_80`` for the interpreter, which has no chip."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def family_of(chip: str) -> str | None:
    """The family whose entries ``chip`` uses; None if there is none."""
    return FAMILIES.get(chip) or LIKE.get(chip)


def configuration_for(
    chip: str, kernel: str, D: int, dtype: torch.dtype, *, describable: bool = True, dropout: bool = False
) -> Configuration:
    """The table's configuration.

    Args:
        chip: ``sm_90`` …
        kernel: one of ``KERNELS``.
        D: head width, 16 to 256.
        dtype: of the queries.
        describable: whether tensor descriptors of what the kernel's loop reads are possible.
        dropout: whether weights are dropped, whose masks take registers: then the loop of a backward kernel reads
            blocks of half the size, without which two of them spill on sm_90.

    Raises:
        DeviceError: the table has no entry for the chip.
    """
    family = family_of(chip)
    if family is None:
        raise DeviceError("attention 'triton'", f"its table has no configuration for {chip}", "Use sdpa")
    split = _entry(SPLIT_WIDTHS, D)
    whole = WHOLE[family][kernel][_entry(WHOLE_WIDTHS, D)]
    if dtype == torch.float32:
        chosen = FLOAT32[family][kernel][split]
    elif tile_widths(D)[1] > 0 or (whole.tma and not describable):
        chosen = SPLIT[family][kernel][split]
    else:
        chosen = whole
    if dropout and kernel == KEY_GRADIENT:
        return replace(chosen, block_t=max(16, chosen.block_t // 2))
    if dropout and kernel == QUERY_GRADIENT:
        return replace(chosen, block_s=max(16, chosen.block_s // 2))
    return chosen
