"""The gated delta rule, forward and backward, against transformers' ``torch_chunk_gated_delta_rule``, as T grows.

    python benchmarks/delta_rule.py                              # 6 heads of 48 × 96, one sequence: a minute or two
    python benchmarks/delta_rule.py --heads 4 --key 128 --value 256 --chunk 32 64
    python benchmarks/delta_rule.py --batch 8 --lengths 128 --chunk 16 32 64 128   # how the chunk was chosen

Both get the same float32 tensors, with keys and queries of length one, and take turns in one process, in reversed order
every other round. The call of transformers' function is that of its own layers on a machine without
flash-linear-attention, in chunks of 64. Seconds are CPU time of one thread, so other processes do not count. A ratio is
theirs over ours in the same round: above 1, archbench is faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.kernels.recurrence.delta_rule import CHUNK, gated_delta_rule
from archbench.measure.malloc import tune_malloc

Rule = Callable[..., Tensor]


def theirs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import torch_chunk_gated_delta_rule

    o: Tensor = torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta)[0]
    return o


def arguments(B: int, T: int, H: int, D: int, M: int) -> list[Tensor]:
    q, k = (F.normalize(torch.randn(B, T, H, D), dim=-1) for _ in range(2))
    tensors = [q, k, torch.randn(B, T, H, M), -torch.rand(B, T, H), torch.rand(B, T, H)]
    return [tensor.requires_grad_() for tensor in tensors]


def seconds(rule: Rule, tensors: list[Tensor], weights: Tensor) -> float:
    start = time.process_time()
    torch.autograd.grad((rule(*tensors) * weights).sum(), tensors)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--chunk", type=int, nargs="+", default=[CHUNK])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--key", type=int, default=48, help="D, width of a head's keys")
    parser.add_argument("--value", type=int, default=96, help="M, width of a head's values")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    tune_malloc()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    rules: dict[str, Rule] = {"transformers": theirs}
    for chunk in options.chunk:
        rules[f"C = {chunk}"] = lambda *tensors, chunk=chunk: gated_delta_rule(*tensors, chunk=chunk)[0]
    print(f"{options.batch} × T tokens, {options.heads} heads of {options.key} × {options.value}, milliseconds")
    for T in options.lengths:
        tensors = arguments(options.batch, T, options.heads, options.key, options.value)
        weights = torch.randn(options.batch, T, options.heads, options.value)
        samples: dict[str, list[float]] = {name: [] for name in rules}
        for round_ in range(-1, options.rounds):  # the first does not count
            for name in rules if round_ % 2 else reversed(rules):
                spent = seconds(rules[name], tensors, weights)
                if round_ >= 0:
                    samples[name].append(spent)
        for name, ours in samples.items():
            ratios = [their / our for their, our in zip(samples["transformers"], ours, strict=True)]
            low, *_, high = quantiles(ratios, n=10)
            times = f"{median(ours) * 1e3:9.1f} ms, {median(ours) / options.batch / T * 1e6:6.1f} µs a token"
            print(f"T = {T:5}  {name:12} {times}  ratio {median(ratios):5.2f} ({low:.2f} – {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
