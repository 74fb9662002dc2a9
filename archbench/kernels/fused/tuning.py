"""Autotuning, opt-in: time a few configurations on this GPU once, and keep the fastest.

With ``ARCHBENCH_AUTOTUNE=1`` the table's configuration and at most five neighbours of it are timed the first time that
a kernel meets a shape, and the choice is kept in Triton's cache folder. The table is the default because a tuned
choice may differ from run to run, and with it the order of additions; runs that were tuned say so in their results.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace

import torch
import triton
from triton.runtime.cache import get_cache_manager
from triton.runtime.errors import OutOfResources, PTXASError

from archbench.kernels.fused.configurations import Configuration, configuration_for, tile_widths
from archbench.kernels.launch import Launch

VARIABLE = "ARCHBENCH_AUTOTUNE"
MOST_CANDIDATES = 6
SMALLEST_BLOCK = 16
FILE = "archbench-attention.json"

log = logging.getLogger("archbench")


def autotuning() -> bool:
    """Whether the user has asked for it."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def candidates(chip: str, kernel: str, D: int, dtype: torch.dtype) -> list[Configuration]:
    """The table's configuration first, then at most five that differ from it in one thing."""
    table = configuration_for(chip, kernel, D, dtype)
    neighbours = [
        replace(table, stages=table.stages + 1),
        replace(table, stages=max(1, table.stages - 1)),
        replace(table, warps=4 if table.warps == 8 else 8),
        replace(table, block_s=max(SMALLEST_BLOCK, table.block_s // 2)),
        replace(table, block_t=max(SMALLEST_BLOCK, table.block_t // 2)),
    ]
    if chip in ("sm_90", "sm_100") and tile_widths(D)[1] == 0:
        neighbours[0] = replace(table, tma=not table.tma)
    return list(dict.fromkeys([table, *neighbours]))[:MOST_CANDIDATES]


def tuned(
    shape: tuple[object, ...],
    options: list[Configuration],
    launch_with: Callable[[Configuration], Launch],
    seconds: Callable[[Callable[[], None]], float] | None = None,
) -> Configuration:
    """The fastest of ``options``, from the cache, or timed now.

    Args:
        shape: what the choice may depend on: chip, sizes, dtype.
        options: at most ``MOST_CANDIDATES``; those that do not fit the chip are passed over, and said to be.
        launch_with: the launch as a configuration would have it.
        seconds: times a call; by default Triton's ``do_bench``, which takes the median.
    """
    measure = seconds or _bench
    assert 0 < len(options) <= MOST_CANDIDATES
    launches = [launch_with(option) for option in options]
    identity = [triton.__version__, launches[0].kernel.cache_key, shape, options]
    cache = get_cache_manager(hashlib.sha256(repr(identity).encode()).hexdigest())
    if (path := cache.get_file(FILE)) is not None:
        with open(path, encoding="utf-8") as file:
            return options[json.load(file)["fastest"]]
    times: dict[int, float] = {}
    for number, launch in enumerate(launches):
        try:
            times[number] = measure(launch.run)
        except (OutOfResources, PTXASError) as error:
            log.info("autotuning %s: %s does not fit (%s)", launch.name, options[number], error)
    if not times:
        return options[0]  # whose launch then raises what is wrong
    fastest = min(times, key=times.__getitem__)
    cache.put(json.dumps({"fastest": fastest, "seconds": times}), FILE, binary=False)
    log.info("autotuning %s: %s of %d", launches[0].name, options[fastest], len(options))
    return options[fastest]


def _bench(call: Callable[[], None]) -> float:
    milliseconds: float = triton.testing.do_bench(call, return_mode="median")
    return milliseconds / 1000
