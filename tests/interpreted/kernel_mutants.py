"""Wrong kernels: each is the package ``archbench.kernels.fused`` with one text of one file replaced by another."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from attention_cases import Case

import archbench.kernels.fused as fused

FUSED = Path(next(iter(fused.__path__)))


@dataclass(frozen=True)
class Mutant:
    """
    Attributes:
        name: what it does wrong.
        file: of the package, without its ending.
        old: text that the file has exactly once.
        new: what stands there instead.
        shows: the cases in which it can make a difference at all.
    """

    name: str
    file: str
    old: str
    new: str
    shows: Callable[[Case], bool] = lambda case: True


def windowed(case: Case) -> bool:
    return case.window is not None and case.window < case.S


def grouped(case: Case) -> bool:
    return case.G < case.H


def regrouped(case: Case) -> bool:
    return 1 < case.G < case.H


def blocks_cut_off(case: Case) -> bool:
    return case.T % 16 > 0


def two_tiles(case: Case) -> bool:
    return case.D in (40, 80, 96)


def long(case: Case) -> bool:
    return case.T >= 65


def long_windowed(case: Case) -> bool:
    return long(case) and windowed(case) and case.window is not None and case.window >= 16


def dropping(case: Case) -> bool:
    return case.dropped > 0


MUTANTS = [
    # Dropout: the same mask in all three kernels, after the sum of the weights.
    Mutant(
        "dropped weights are not in the sum",
        "forward", "        total = total * rescale + tl.sum(weights, 1)\n        if DROPOUT:",
        "        if DROPOUT:", dropping,
    ),
    Mutant("kept weights are not scaled", "forward", "divisor = total / kept_scale", "divisor = total", dropping),
    Mutant(
        "the mask of each block is the first one's",
        "forward", "query_positions, row // 8, dropped", "query_positions, 0 * row, dropped",
        lambda case: dropping(case) and long(case),
    ),
    Mutant(
        "keys' gradients have another mask",
        "backward", "rows + offset, (first_key + offset) // 8", "rows + offset, (first_key + offset) // 8 + 1",
        dropping,
    ),
    Mutant(
        "keys' gradients count queries, not positions",
        "backward", "seed, plane, rows + offset, (first_key", "seed, plane, rows, (first_key",
        lambda case: dropping(case) and case.S > case.T,
    ),
    Mutant(
        "all heads of a group have one mask",
        "backward", "batch * heads + head, dropped, kept_scale,\n            D, D1, D2, BLOCK_T, BLOCK_S, False",
        "batch * heads + kv_head, dropped, kept_scale,\n            D, D1, D2, BLOCK_T, BLOCK_S, False",
        lambda case: dropping(case) and grouped(case) and long(case),
    ),
    Mutant(
        "values' gradients are of all weights",
        "backward", "weights = tl.where(kept, weights * kept_scale, 0.0)", "weights = weights * 1.0", dropping,
    ),
    Mutant(
        "queries' gradients are of all weights",
        "backward", "query_positions, row // 8, dropped, BLOCK_T, BLOCK_S)",
        "query_positions, row // 8, 0 * dropped, BLOCK_T, BLOCK_S)",
        dropping,
    ),
    # Who sees whom, and which blocks are visited.
    Mutant(
        "the next key is seen",
        "tiles", "seen = key_positions <= query_positions", "seen = key_positions <= query_positions + 1",
        lambda case: case.T > 1,
    ),
    Mutant(
        "the own key is hidden",
        "tiles", "seen = key_positions <= query_positions", "seen = key_positions < query_positions",
    ),
    Mutant(
        "the window is one wider",
        "tiles", "query_positions - key_positions < window", "query_positions - key_positions <= window",
        windowed,
    ),
    Mutant(
        "forward masks nothing",
        "forward", 'scores = tl.where(seen, scores, -float("inf"))', "scores = tl.where(seen, scores, scores)",
        lambda case: case.T > 1,
    ),
    Mutant(
        "the window's left edge counts as full",
        "tiles", "tl.cdiv(seen_by_all, BLOCK_S) * BLOCK_S", "seen_by_all // BLOCK_S * BLOCK_S",
        long_windowed,
    ),
    Mutant(
        "the diagonal counts as full",
        "tiles", "full_end = (first_query + 1) // BLOCK_S", "full_end = tl.cdiv(first_query + 1, BLOCK_S)",
        lambda case: case.T > 1,
    ),
    Mutant(
        "the window begins a block late",
        "tiles", "tl.maximum(first_query - window + 1, 0) // BLOCK_S",
        "tl.cdiv(tl.maximum(first_query - window + 1, 0), BLOCK_S)",
        windowed,
    ),
    Mutant(
        "the masked loop visits the full blocks again",
        "tiles", "tl.where(step >= full_start, full_end - full_start, 0)", "0",
        long,
    ),
    Mutant(
        "queries take the place of the prefix",
        "forward", "offset = S - T", "offset = 0",
        lambda case: case.S > case.T,
    ),
    Mutant(
        "a section of heads ignores that fewer are left",
        "tiles", "width = tl.minimum(section, heads - first)", "width = section",
        lambda case: case.section is not None and case.B * case.H % case.section > 0,
    ),
    # The online softmax.
    Mutant("sums are not rescaled", "forward", "sum1 = sum1 * rescale[:, None]", "sum1 = sum1 * 1.0", long),
    Mutant(
        "the sum of the second tile is not rescaled",
        "forward", "sum2 = sum2 * rescale[:, None]", "sum2 = sum2 * 1.0",
        lambda case: two_tiles(case) and long(case),
    ),
    Mutant(
        "the total is not rescaled",
        "forward", "total = total * rescale + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)",
        long,
    ),
    Mutant(
        "no running maximum: the reference is 0",
        "forward", "new_maximum = tl.maximum(maximum, tl.max(scores, 1) * scale_log2e)",
        "new_maximum = tl.zeros_like(maximum)",
        lambda case: case.gain > 1,
    ),
    Mutant(
        "rows not begun are not guarded",
        "forward", 'tl.where(new_maximum == -float("inf"), 0.0, new_maximum)', "new_maximum",
        windowed,
    ),
    Mutant("ln for log2", "forward", "tl.log2(total)", "tl.log(total)", lambda case: case.S > 1),
    # Heads.
    Mutant(
        "forward takes the wrong group",
        "forward", "kv_head = head // group", "kv_head = head % (heads // group)",
        regrouped,
    ),
    Mutant(
        "dq takes the wrong group",
        "backward", "kv_head = head // group", "kv_head = head % (heads // group)",
        regrouped,
    ),
    Mutant(
        "dk and dv take the wrong group",
        "backward", "head = kv_head * group", "head = kv_head",
        regrouped,
    ),
    Mutant("dk and dv take one head of the group", "backward", "tl.range(0, group,", "tl.range(0, 1,", grouped),
    # Gradients.
    Mutant("dk is not scaled", "backward", "grad_k1 * scale", "grad_k1"),
    Mutant("the second tile of dk is not scaled", "backward", "grad_k2 * scale", "grad_k2", two_tiles),
    Mutant("dq is not scaled", "backward", "grad_q1 * scale", "grad_q1"),
    Mutant("dk drops delta", "backward", "(grad_weights - row_delta[None, :])", "grad_weights"),
    Mutant("dq drops delta", "backward", "(grad_weights - row_delta[:, None])", "grad_weights"),
    Mutant(
        "dk and dv end with the first key's window",
        "backward", "end = tl.minimum(T, last + window - offset)", "end = tl.minimum(T, first + window - offset)",
        windowed,
    ),
    Mutant(
        "dk and dv count the window's edge as full",
        "backward", "tl.minimum(T, first + window - offset)", "tl.minimum(T, last + window - offset)",
        long_windowed,
    ),
    Mutant(
        "dk and dv count the diagonal as full",
        "backward", "tl.cdiv(tl.maximum(last - offset, 0), BLOCK_T)", "(tl.maximum(last - offset, 0) // BLOCK_T)",
        long,
    ),
    Mutant(
        "dk and dv see the next key",
        "backward", "visible(rows[None, :],", "visible(rows[None, :] + 1,",
        lambda case: case.T > 1,
    ),
    Mutant(
        "dq begins after the window's edge",
        "backward", "rows + offset, start, full_start, full_end,", "rows + offset, full_start, full_start, full_end,",
        windowed,
    ),
    # Memory.
    Mutant(
        "rows past the end are written",
        "tiles", "inside = (row + tl.arange(0, ROWS) < length)[:, None] & (columns < D)[None, :]",
        "inside = (tl.arange(0, ROWS) >= 0)[:, None] & (columns < D)[None, :]",
        blocks_cut_off,
    ),
    Mutant(
        "columns past the width are read",
        "tiles", "mask=inside & (columns < D)[None, :], other", "mask=inside, other",
        two_tiles,
    ),
    Mutant(
        "queries past the end are read",
        "forward", "q_stride, T, BLOCK_T, D, D1, D2, True, False)", "q_stride, T, BLOCK_T, D, D1, D2, False, False)",
        blocks_cut_off,
    ),
    Mutant(
        "the log-sum-exp of rows past the end is written",
        "forward", "maximum + tl.log2(total), mask=rows < T)", "maximum + tl.log2(total))",
        blocks_cut_off,
    ),
    Mutant(
        "the last keys' block is not launched",
        "launches", "math.ceil(S / keys.block_s) * B * G", "S // keys.block_s * B * G",
        lambda case: case.S > 64,
    ),
    Mutant(
        "two programs do the work of one, and none another's",
        "tiles", "return rank // width, first + rank % width", "return rank // width, first + rank % width // 2 * 2",
        lambda case: case.B * case.H > 1 and case.section != 1,
    ),
]  # fmt: skip


@contextmanager
def copied(folder: Path, package: str, mutant: Mutant | None) -> Iterator[ModuleType]:
    """A copy of the kernels as a package of its own, mutated or not: its module ``launches``.

    Raises:
        AssertionError: the kernels no longer have the mutant's text; it has to follow them.
    """
    target = folder / package
    target.mkdir()
    for file in FUSED.glob("*.py"):
        source = file.read_text()
        if mutant and file.stem == mutant.file:
            found = source.count(mutant.old)
            assert found == 1, f"{file.name} has this {found} times, not once; let the mutant follow it: {mutant.old!r}"
            source = source.replace(mutant.old, mutant.new)
        (target / file.name).write_text(source.replace(fused.__name__, package))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(f"{package}.launches")
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
