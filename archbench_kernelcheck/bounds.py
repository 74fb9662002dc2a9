"""How fast a launch could be: a model on top of the static figures. Nothing here is measured.

In an iteration of an innermost loop, a block keeps these units of its SM busy:

- tensor cores: FLOPs of the tensor-core instructions / ``tensor_flops`` per cycle;
- issue slots: instructions of all warps / ``issue`` per cycle;
- the exponential unit: MUFU instructions × threads of a warp / ``exp_lanes`` per cycle.

If everything overlaps, an iteration takes as long as the busiest unit: the *upper bound*. If the tensor cores wait for
the other work, it takes tensor cycles + max(issue, exp): the *serial* figure. Neither includes device memory,
latencies, cache misses, barriers, the last wave of blocks or clocks below the boost clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from archbench_kernelcheck.chips import Chip, chip_named
from archbench_kernelcheck.figures import Figures, LoopFigures


@dataclass(frozen=True)
class Bound:
    """Predicted speed of one loop, FLOPs per second of the whole chip.

    Attributes:
        tensor, issue, exp: cycles per iteration and block that each unit is busy.
        upper: predicted FLOP/s if the units overlap entirely.
        serial: predicted FLOP/s if the tensor cores wait for the rest.
        limiter: the unit that sets ``upper``: ``tensor``, ``issue`` or ``exp``.
    """

    tensor: float
    issue: float
    exp: float
    upper: float
    serial: float
    limiter: str


def loop_bound(chip: Chip, loop: LoopFigures, warps: int) -> Bound:
    """Predict one loop on ``chip``, from one iteration per warp and the warps per block."""
    flops = loop.tensor_flops * warps
    cycles = {
        "tensor": flops / chip.tensor_flops,
        "issue": loop.issued * warps / chip.issue,
        "exp": loop.exponentials * warps * chip.warp / chip.exp_lanes,
    }
    limiter = max(cycles, key=lambda unit: cycles[unit])
    rate = flops * chip.multiprocessors * chip.clock
    serial = rate / (cycles["tensor"] + max(cycles["issue"], cycles["exp"]))
    return Bound(upper=rate / cycles[limiter], serial=serial, limiter=limiter, **cycles)


def bound(figures: Figures) -> Bound | None:
    """Predict a launch from its fastest loop with tensor-core instructions, which is the one without masks.

    None if no loop has any, if the code does not say how many FLOPs they do, or if warps of a block run different
    code, so that no single loop does the whole work.
    """
    if figures.specialised:
        return None
    chip = chip_named(figures.chip)
    bounds = [loop_bound(chip, loop, figures.warps) for loop in figures.tensor_loops if loop.tensor_flops]
    return max(bounds, key=lambda one: one.serial, default=None)
