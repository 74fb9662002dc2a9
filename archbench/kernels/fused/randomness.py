"""The random bits of dropout inside a kernel: a pure function of a seed and of the element's place.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") makes four 32-bit numbers of a seed
and a counter: eight 16-bit integers, which decide about eight neighbours. A backward kernel asks again instead of
reading a mask. :func:`archbench.kernels.dropout_bits.reference_keep` is the same in PyTorch.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEIGHBOURS = 8
"""Elements of a row that one counter decides about."""


@triton.jit
def seed_number(seed):
    """A seed that is given as a number, or as its place on the device: then a captured launch reads another one each
    time that it is replayed."""
    return tl.load(seed) if seed.dtype.is_ptr() else seed


@triton.jit
def keep(seed, plane, rows, group, dropped, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether each element of a tile is kept, (ROWS, COLUMNS).

    Args:
        seed: int64.
        plane: which matrix of several.
        rows: (ROWS,) int32, the elements' rows in the matrix.
        group: their first column / 8, int32.
        dropped: of 65,536 values of 16 bits, how many drop an element.
    """
    groups = group + tl.arange(0, COLUMNS // 8)
    places = groups[None, :] + tl.zeros([ROWS, COLUMNS // 8], tl.int32)
    which = rows[:, None] + tl.zeros([ROWS, COLUMNS // 8], tl.int32)
    nothing = tl.zeros([ROWS, COLUMNS // 8], tl.int32)
    first, second, third, fourth = tl.philox(seed, places, which, nothing + plane, nothing)
    low = tl.join(_halves(first, dropped), _halves(second, dropped))
    high = tl.join(_halves(third, dropped), _halves(fourth, dropped))
    return tl.join(low, high).reshape(ROWS, COLUMNS) != 0


@triton.jit
def _halves(word, dropped):
    """What the low and the high 16 bits of a word decide, in a new last dimension."""
    low = (word & 0xFFFF).to(tl.int32) >= dropped
    high = (word >> 16).to(tl.int32) >= dropped
    return tl.join(low.to(tl.int8), high.to(tl.int8))
