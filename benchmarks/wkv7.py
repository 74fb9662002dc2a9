"""WKV7 forward and backward: chunks against the step-by-step recurrence, chunk sizes, and growth with T.

    OMP_NUM_THREADS=1 python benchmarks/wkv7.py                      # one sequence, 3 heads of 64 channels: a minute
    OMP_NUM_THREADS=1 python benchmarks/wkv7.py --batch 8 --heads 5 --width 32 --lengths 128 --steps-up-to 128

Milliseconds of CPU time of one thread: the lower quartile of --rounds, in which the cases take turns, so other work on
the machine has little effect.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.recurrence.wkv7 import CHUNK, reference_wkv7, wkv7
from archbench.measure.malloc import tune_malloc


def arguments(B: int, T: int, H: int, D: int) -> list[Tensor]:
    """r, log_w, k, v, a, b, each (B, T, H, D), as RWKV-7 makes them."""
    torch.manual_seed(0)
    r, decays, k, v, keys, rates = (torch.randn(B, T, H, D) for _ in range(6))
    removal = F.normalize(keys, dim=-1)
    tensors = [r, -math.exp(-0.5) * torch.sigmoid(decays), k, v, -removal, removal * torch.sigmoid(rates)]
    return [tensor.requires_grad_() for tensor in tensors]


def milliseconds(recurrence: Callable[..., tuple[Tensor, Tensor]], tensors: list[Tensor], weights: Tensor) -> float:
    start = time.process_time()
    y, _ = recurrence(*tensors)
    torch.autograd.grad((y * weights).sum(), tensors)
    return 1e3 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="B")
    parser.add_argument("--heads", type=int, default=3, help="H")
    parser.add_argument("--width", type=int, default=64, help="D, of a head")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="T")
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 32, 64], help="chunk sizes")
    parser.add_argument("--steps-up-to", type=int, default=1024, help="longest T to go through step by step")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"malloc {tune_malloc()}; chunk of {CHUNK} by default; B = {options.batch}, H = {options.heads}, "
          f"D = {options.width}")  # fmt: skip
    for T in options.lengths:
        tensors = arguments(options.batch, T, options.heads, options.width)
        weights = torch.randn_like(tensors[3])
        cases: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
            f"chunks of {chunk}": partial(wkv7, chunk=chunk) for chunk in options.chunks
        }
        if options.steps_up_to >= T:
            cases["step by step"] = reference_wkv7
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(options.rounds + 1):  # the first warms up
            for name, recurrence in cases.items():
                times[name].append(milliseconds(recurrence, tensors, weights))
        for name, samples in times.items():
            quartile = sorted(samples[1:])[options.rounds // 4]
            print(f"T = {T:5}  {name:13} {quartile:9.1f} ms  {1e3 * quartile / T:8.1f} µs a position", flush=True)


if __name__ == "__main__":
    main()
