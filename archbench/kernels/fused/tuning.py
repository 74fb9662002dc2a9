"""Autotuning, opt-in: time a few configurations on this GPU once, and keep the fastest.

With ``ARCHBENCH_AUTOTUNE=1`` the table's configuration, up to five neighbours and persistent kernels are timed for each
new shape, and the choice is kept in Triton's cache folder. The table is the default because a tuned choice, and with it
the order of additions, may differ between runs; the results of tuned runs say so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import triton
from pydantic import BaseModel
from torch import Tensor
from triton.runtime.cache import get_cache_manager
from triton.runtime.errors import OutOfResources, PTXASError

from archbench.errors import StorageError
from archbench.files.loader import read_model
from archbench.kernels.fused.configurations import (
    FORWARD,
    PERSISTENT,
    Configuration,
    chip_of,
    configuration_for,
    family_of,
    tile_widths,
)
from archbench.kernels.launch import Launch

SMALLEST_BLOCK = 16
FILE = "archbench-attention.json"
LARGEST_DIFFERENCE = 2.0**-6
"""Between two candidates' outputs, relative to their norm: two units in the last place of bfloat16."""
COMPILER_GAVE_UP = "PassManager::run failed"
"""Message of Triton's RuntimeError if one of its passes fails."""


class _Kept(BaseModel):
    """The part of a kept choice that is read."""

    fastest: int


log = logging.getLogger("archbench")

# Choices of this process, so that the file is not read at every launch.
_choices: dict[tuple[object, ...], Configuration] = {}


def candidates(chip: str, kernel: str, D: int, dtype: torch.dtype, *, dropout: bool = False) -> list[Configuration]:
    """The table's configuration, up to five that differ from it in one attribute, and persistent ones."""
    table = configuration_for(chip, kernel, D, dtype)
    half, persists = dtype != torch.float32, kernel == FORWARD and not dropout
    persistent = PERSISTENT.get(family_of(chip) or "", {}).get(D, ()) if half and persists else ()
    descriptors = family_of(chip) in ("sm_90", "sm_100") and tile_widths(D)[1] == 0
    neighbours = [
        replace(table, tma=not table.tma) if descriptors else replace(table, stages=table.stages + 1),
        replace(table, stages=max(1, table.stages - 1)),
        replace(table, warps=4 if table.warps == 8 else 8),
        replace(table, block_s=max(SMALLEST_BLOCK, table.block_s // 2)),
        replace(table, block_t=max(SMALLEST_BLOCK, table.block_t // 2)),
    ]
    return [table, *(one for one in neighbours if one != table), *persistent]


def tuned(
    kernel: str,
    q: Tensor,
    k: Tensor,
    *,
    window: int | None,
    precision: str,
    outputs: Sequence[Tensor],
    launches_with: Callable[[Configuration], Sequence[Launch]],
    dropout: bool = False,
) -> Configuration:
    """The fastest candidate: chosen before, read from the cache folder, or timed now.

    Args:
        kernel: one of ``KERNELS``.
        q: (B, H, T, D), on the current GPU.
        k: (B, G, S, D).
        window, precision: see :func:`archbench.kernels.fused.launches.fused_forward`.
        outputs: what the timed launch writes. A candidate that writes something else than the first is no choice.
        launches_with: the launches with a configuration. The last one is timed; the others run once before it.
        dropout: whether weights are dropped.

    Returns:
        The fastest that the chip can run; the table's if it can run none, whose launch then raises the error.
    """
    shape = (kernel, *_shape(q, k, window, precision), *["dropout"] * dropout)
    if shape not in _choices:
        options = candidates(chip_of(q.device), kernel, q.shape[3], q.dtype, dropout=dropout)
        identity = repr((triton.__version__, _source_hash(), shape, options))
        cache = get_cache_manager(hashlib.sha256(identity.encode()).hexdigest())
        fastest = _chosen_before(cache.get_file(FILE), len(options))
        if fastest is None:
            times = _times(kernel, options, outputs, launches_with)
            if not times:
                return options[0]
            fastest = min(times, key=times.__getitem__)
            cache.put(json.dumps({"fastest": fastest, "seconds": times, "of": identity}), FILE, binary=False)
            log.info("autotuning %s: %s is the fastest of %d", kernel, options[fastest], len(options))
        _choices[shape] = options[fastest]
    return _choices[shape]


def _chosen_before(file: str | None, options: int) -> int | None:
    """The number of the fastest option, as the cache has it; None if it has none, or a damaged one, which is logged."""
    if file is None:
        return None
    try:
        kept = read_model(_Kept, file, limit=1 << 20, next_step="It is timed again")
    except StorageError as error:
        log.warning("autotuning: %s", error)
        return None
    if not 0 <= kept.fastest < options:
        log.warning("autotuning: %s: it names option %d of %d. It is timed again.", file, kept.fastest, options)
        return None
    return kept.fastest


def seconds(call: Callable[[], None]) -> float:
    """Median time of a call on the current GPU, with its L2 cache flushed before each."""
    milliseconds: float = triton.testing.do_bench(call, return_mode="median")
    return milliseconds / 1000


def _times(
    kernel: str,
    options: list[Configuration],
    outputs: Sequence[Tensor],
    launches_with: Callable[[Configuration], Sequence[Launch]],
) -> dict[int, float]:
    """Seconds of each option that the chip can run and whose outputs are the first one's, by its number."""
    times: dict[int, float] = {}
    wanted: list[Tensor] = []
    for number, option in enumerate(options):
        *before, launch = launches_with(option)
        for output in outputs:
            output.fill_(math.nan)
        try:
            for earlier in before if number == 0 else ():
                earlier.run()
            times[number] = seconds(launch.run)
        except (OutOfResources, PTXASError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and COMPILER_GAVE_UP not in str(error):
                raise
            log.info("autotuning %s: %s cannot run here (%s)", kernel, option, error)
            continue
        if not all(map(_agree, outputs, wanted)):
            log.warning("autotuning %s: %s computes something else than %s; report it", kernel, option, options[0])
            del times[number]
        wanted = wanted or [output.clone() for output in outputs]
    return times


def _agree(found: Tensor, wanted: Tensor) -> bool:
    """Within what other blocks, and so another order of additions, can change; NaN agrees with nothing."""
    return bool((found.float() - wanted.float()).norm() <= LARGEST_DIFFERENCE * wanted.float().norm())


def _shape(q: Tensor, k: Tensor, window: int | None, precision: str) -> tuple[object, ...]:
    """What a choice may depend on; sizes as powers of two, so that not every length is tuned."""
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    device = torch.cuda.get_device_name(q.device) if q.device.type == "cuda" else "interpreter"
    sizes = [B * H, T, S, *([] if window is None or window >= S else [window])]
    return chip_of(q.device), device, D, str(q.dtype), H // G, precision, *((size - 1).bit_length() for size in sizes)


@cache
def _source_hash() -> str:
    """Hash of the kernels, their launches and the table."""
    sources = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(sources)).hexdigest()
