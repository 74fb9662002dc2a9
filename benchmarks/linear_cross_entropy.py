"""The chunked loss against all logits: seconds and memory of a loss with the gradients of hidden states and head.

    python benchmarks/linear_cross_entropy.py                     # GPT-1's head, 1,024 and 4,096 rows, some minutes
    python benchmarks/linear_cross_entropy.py --malloc --json out.json

Three contenders: ``F.cross_entropy(hidden @ weight.T, targets)``, which holds all (N, V) logits;
``archbench.linear_cross_entropy``; and, where torch has it (2.13), its own chunked ``F.linear_cross_entropy`` with the
options that torch chooses. Three precisions: float32; bfloat16 hidden states and weights; float32 ones under bfloat16
autocast, as archbench trains.

Seconds: all contenders take turns in one process (A B C C B A ...), forward and backward, gradients dropped before each
turn. A ratio is a contender's time over that of all logits in the same round: below 1, it is faster; the table
shows the median and the range from the 10th to the 90th percentile. CPU time, of all threads, is beside it because
other work on the machine disturbs it less.

Memory: each contender in a process of its own, after a small call that loads the libraries: growth of the peak resident
set (VmHWM) over one loss and its backward pass. ``extra`` is what comes on top of hidden, weight and targets, the
gradients included; ``without gradients`` leaves out the bytes of the two gradients, which every contender has to hand
over in the end (kind to all logits, whose peak comes before they have any). The share is the extra memory over that of
all logits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor

from archbench import linear_cross_entropy
from archbench.measure.malloc import tune_malloc
from archbench.measure.memory import peak_memory

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

PRECISIONS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16 autocast": (torch.float32, True),
}
"""By name: dtype of hidden and weight, and whether autocast is on."""


def all_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets)


def torch_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())


def contenders(with_torch: bool) -> dict[str, Loss]:
    losses: dict[str, Loss] = {"all logits": all_logits, "archbench": linear_cross_entropy}
    if with_torch and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        losses["torch, chunked"] = torch_chunked
    return losses


def inputs(N: int, V: int, C: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (N, C) as after a LayerNorm, weight (V, C) as GPT-1 draws it, targets (N,)."""
    torch.manual_seed(0)
    # Drawn in place: temporaries that the allocator keeps would be there for the contender to use, uncounted.
    hidden = torch.empty(N, C, dtype=dtype).normal_().requires_grad_()
    weight = torch.empty(V, C, dtype=dtype).normal_(std=0.02).requires_grad_()
    return hidden, weight, torch.randint(V, (N,))


def run(loss: Loss, given: tuple[Tensor, Tensor, Tensor], autocast: bool) -> float:
    """One loss and its gradients; the loss."""
    for tensor in given:
        tensor.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = loss(*given)
    result.backward()
    return result.item()


def take_turns(losses: dict[str, Loss], precision: str, N: int, options: argparse.Namespace) -> dict[str, Any]:
    """Per contender: every turn's seconds and CPU seconds, and the loss."""
    dtype, autocast = PRECISIONS[precision]
    given = inputs(N, options.vocabulary, options.width, dtype)
    samples: dict[str, Any] = {name: {"seconds": [], "cpu_seconds": []} for name in losses}
    for turn in range(options.warmup + options.rounds):
        for name in losses if turn % 2 == 0 else reversed(losses):
            wall, cpu = time.perf_counter(), time.process_time()
            value = run(losses[name], given, autocast)
            if turn >= options.warmup:
                samples[name]["seconds"].append(time.perf_counter() - wall)
                samples[name]["cpu_seconds"].append(time.process_time() - cpu)
                samples[name]["loss"] = value
    return samples


def memory_in_child(name: str, precision: str, N: int, options: argparse.Namespace) -> dict[str, int]:
    command = [sys.executable, __file__, "--child", name, "--precision", precision, "--rows", str(N)]
    command += ["--vocabulary", str(options.vocabulary), "--width", str(options.width)]
    command += ["--threads", str(torch.get_num_threads()), *(["--malloc"] if options.malloc else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


def measure_memory(name: str, precision: str, N: int, options: argparse.Namespace) -> dict[str, int]:
    dtype, autocast = PRECISIONS[precision]
    loss = contenders(with_torch=True)[name]
    run(loss, inputs(64, 512, options.width, dtype), autocast)
    given = inputs(N, options.vocabulary, options.width, dtype)
    with peak_memory("cpu") as memory:
        run(loss, given, autocast)
    if memory.peak_bytes is None or memory.baseline_bytes is None:
        raise SystemExit(f"memory cannot be measured here: {memory.reason}")
    gradients = sum(t.grad.numel() * t.grad.element_size() for t in given if t.grad is not None)
    return {"extra_bytes": memory.peak_bytes - memory.baseline_bytes, "gradient_bytes": gradients}


def spread(values: list[float], digits: int = 2) -> str:
    ordered = sorted(values)
    low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.1, 0.9))
    return f"{median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def add_rows(table: Table, precision: str, N: int, samples: dict[str, Any], memory: dict[str, dict[str, int]]) -> None:
    base, base_bytes = samples["all logits"], memory["all logits"]["extra_bytes"]
    for name, sample in samples.items():
        extra, gradients = memory[name]["extra_bytes"], memory[name]["gradient_bytes"]
        ratios = [
            spread([mine / theirs for mine, theirs in zip(sample[kind], base[kind], strict=True)])
            for kind in ("seconds", "cpu_seconds")
        ]
        table.add_row(
            precision, f"{N:,}", name, spread(sample["seconds"]), *ratios, f"{extra / 1e6:,.0f}",
            f"{extra / base_bytes:.2f}", f"{(extra - gradients) / 1e6:,.0f}", f"{sample['loss']:.5f}",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="N, hidden states; default: 1024 and 4096")
    parser.add_argument("--vocabulary", type=int, default=40_478, help="V")
    parser.add_argument("--width", type=int, default=768, help="C")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: all three")
    parser.add_argument("--without-torch", action="store_true", help="leave out torch's own, which is slow on CPUs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2, help="rounds before those that count")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--malloc", action="store_true", help="tune glibc's allocator, as archbench run does")
    parser.add_argument("--json", type=Path, help="also write every sample there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    allocator = tune_malloc() if options.malloc else "default"
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measure_memory(options.child, options.precision[0], options.rows[0], options)))
        return

    losses = contenders(with_torch=not options.without_torch)
    titles = ("precision", "N", "loss with gradients", "seconds", "time / all logits", "CPU time / all logits")
    titles += ("extra MB", "share", "without gradients MB", "nats")
    table = Table(*titles, box=MARKDOWN)
    cases = []
    for precision in options.precision or PRECISIONS:
        for N in options.rows or [1024, 4096]:
            memory = {name: memory_in_child(name, precision, N, options) for name in losses}
            samples = take_turns(losses, precision, N, options)
            add_rows(table, precision, N, samples, memory)
            cases.append({"precision": precision, "N": N, "samples": samples, "memory": memory})
            print(f"{precision}, N = {N:,}: done", file=sys.stderr)
    about = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "allocator": allocator,
        "V": options.vocabulary,
        "C": options.width,
        "rounds": options.rounds,
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    Console(width=200).print(table)
    if options.json:
        options.json.write_text(json.dumps({**about, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
