"""The cost of context against its length T: prefill seconds, seconds for each token after it, and bytes kept.

    python benchmarks/cost_growth.py                           # every built-in architecture, T = 512 to 8192: minutes
    python benchmarks/cost_growth.py llama mistral mamba2 --lengths 256 512 1024 --rounds 3
    python benchmarks/cost_growth.py --json growth.json

Theory: with full attention, time and state of a token are linear in T, and the scores of a prompt take T². With a
window W, both are flat beyond T = W, and a prompt is linear. A recurrent state is always flat.

Sizes are the preset ``small`` (6 layers, 384 wide) with room for the longest context, weights at their initial values
(speed does not depend on them), one sequence, windows as in the preset. Each round takes every architecture and length
once, in an order that is reversed every other round; the table has medians over rounds, and of the last length over the
first the ratio with its range from the 10th to the 90th percentile. Seconds a token are the median of --new-tokens
single steps after a prompt of T tokens has been read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import archbench
from archbench.measure.flops import measured_cache_bytes
from archbench.measure.malloc import tune_malloc


def prepared(name: str, longest: int) -> nn.Module:
    torch.manual_seed(0)
    architecture = archbench.load(name)
    config = architecture.config("small", context_length=longest)
    return architecture.build(config).eval()


def sample(model: Any, T: int, new_tokens: int) -> tuple[float, float]:
    """Seconds to read T tokens, and the median of those of each of the tokens after them."""
    tokens = torch.randint(model.config.vocab_size, (1, T + new_tokens))
    with torch.inference_mode():
        cache = model.new_cache(1, T + new_tokens)
        start = time.perf_counter()
        model.extend(tokens[:, :T], cache)
        prefill = time.perf_counter() - start
        steps = []
        for position in range(T, T + new_tokens):
            start = time.perf_counter()
            model.extend(tokens[:, position : position + 1], cache)
            steps.append(time.perf_counter() - start)
    return prefill, median(steps)


def measured(names: list[str], lengths: list[int], rounds: int, new_tokens: int) -> dict[str, dict[str, Any]]:
    models = {name: prepared(name, lengths[-1] + new_tokens) for name in names}
    cases = [(name, T) for name in names for T in lengths]
    times: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for name, T in cases if turn % 2 else reversed(cases):
            taken = sample(models[name], T, new_tokens)
            if turn:  # the first round is warm-up
                times[name, T].append(taken)
        print(f"round {turn} of {rounds}", file=sys.stderr)
    return {
        name: {
            "prefill_seconds": {T: [one for one, _ in times[name, T]] for T in lengths},
            "decode_seconds_per_token": {T: [one for _, one in times[name, T]] for T in lengths},
            "state_bytes": {T: [measured_cache_bytes(models[name], 1, T)] for T in lengths},
        }
        for name in names
    }


def growth(samples: dict[int, list[float]]) -> str:
    """The last length over the first, round by round: median and the range from the 10th to the 90th percentile."""
    first, *_, last = samples.values()
    ratios = sorted(end / begin for begin, end in zip(first, last, strict=True))
    if len(ratios) == 1:
        return f"{ratios[0]:.2f}"
    low, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.1, 0.9))
    return f"{median(ratios):.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built_in = [entry.name for entry in archbench.available() if entry.package == "archbench"]
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every built-in architecture")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192], help="T")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--json", type=Path, help="also write every sample there")
    options = parser.parse_args()
    tune_malloc()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = measured(options.names or built_in, sorted(options.lengths), options.rounds, options.new_tokens)

    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(about, file=sys.stderr)
    lengths = sorted(options.lengths)
    for title, metric, scale, digits in (
        ("Milliseconds to read T tokens", "prefill_seconds", 1e3, 1),
        ("Milliseconds a token after T", "decode_seconds_per_token", 1e3, 2),
        ("KiB of state at T", "state_bytes", 1 / 1024, 0),
    ):
        print(f"\n| {title} | {' | '.join(map(str, lengths))} | last / first |\n|---|{'---|' * (len(lengths) + 1)}")
        for name, result in results.items():
            cells = [f"{median(result[metric][T]) * scale:,.{digits}f}" for T in lengths]
            print(f"| {name} | {' | '.join(cells)} | {growth(result[metric])} |")
    if options.json:
        options.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
