"""Attention on a CPU: ``blocks`` against torch's (``sdpa``), or against ``reference`` under dropout, in float32.

    python benchmarks/cpu_attention.py                    # the cases of docs/explanation/decisions.md, about a minute
    python benchmarks/cpu_attention.py --lengths 512 1024 --windows 256 --dropout 0.1

Both take turns in one process (A B B A …), on the same inputs, with archbench's allocator setting. A ratio is theirs
over ours in the same round: above 1, blocks are faster. The table has medians, and in brackets the quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median, quantiles

import torch
from torch import Tensor

from archbench.kernels import causal_attention, resolve_attention
from archbench.measure.malloc import tune_malloc


def alternated(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, list[float]]:
    """Their median seconds, and the ratios of all rounds."""
    ours(), theirs()
    times: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for number in range(rounds):
        for one in (ours, theirs) if number % 2 else (theirs, ours):
            start = time.perf_counter()
            one()
            times[one].append(time.perf_counter() - start)
    return median(times[theirs]), [b / a for a, b in zip(times[ours], times[theirs], strict=True)]


def both(attend: Callable[..., Tensor], inputs: tuple[Tensor, ...], upstream: Tensor, *, backend: str) -> None:
    """Forward and backward."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    torch.autograd.grad(attend(*leaves, backend=backend), leaves, upstream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 320, 384, 512, 768, 1024, 2048], help="T")
    parser.add_argument("--head-widths", type=int, nargs="+", default=[32, 64, 128], help="D")
    parser.add_argument("--heads", type=int, default=12, help="H")
    parser.add_argument("--kv-heads", type=int, default=12, help="G")
    parser.add_argument("--batches", type=int, nargs="+", default=[2], help="B")
    parser.add_argument("--windows", type=int, nargs="+", default=[0], help="W; 0: none")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    tune_malloc()
    torch.manual_seed(0)
    print("B T D W | theirs | forward: ms, ratio | forward and backward: ms, ratio | auto takes")
    for B, T, D, W in product(given.batches, given.lengths, given.head_widths, given.windows):
        H, G, window = given.heads, given.kv_heads, W or None
        theirs = "reference" if given.dropout else "sdpa"
        shapes = ((B, T, H, D), (B, T, G, D), (B, T, G, D), (B, T, H, D))
        q, k, v, upstream = (torch.randn(shape).transpose(1, 2) for shape in shapes)
        attend = partial(causal_attention, window=window, dropout=given.dropout)
        shown = []
        for run in (partial(attend, q, k, v), partial(both, attend, (q, k, v), upstream)):
            seconds, ratios = alternated(partial(run, backend="blocks"), partial(run, backend=theirs), given.rounds)
            low, _, high = quantiles(ratios, n=4)
            shown.append(f"{1e3 * seconds:.2f}, {median(ratios):.2f} ({low:.2f}-{high:.2f})")
        chosen = resolve_attention(
            "auto", device_type="cpu", dtype=q.dtype, T=T, S=T, D=D, window=window, dropout=given.dropout, heads=B * H
        )
        print(f"{B} {T} {D} {window} | {theirs} | {' | '.join(shown)} | {chosen}", flush=True)


if __name__ == "__main__":
    main()
