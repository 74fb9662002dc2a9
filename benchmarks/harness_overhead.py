"""Overhead of the harness: a training step inside ``archbench.training.loop.train``, and the same step by hand.

    python benchmarks/harness_overhead.py [--rounds 30] [--steps 10] [--batch-sizes 4 16] [--threads N]

Both sides train gpt1's ``nano`` preset from the same weights on the same batches, in one process, in alternation
(A B A B, and B A B A every other round):

- harness: the hook's facade, the sampler, the clock, the schedule, the history, plain progress lines;
- by hand: slice a batch, forward, cross-entropy, backward, clip, fused AdamW, clear; nothing recorded.

Then the harness runs empty steps, which shows its own cost without the noise of the work, and that this cost does not
depend on the step.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from statistics import median, quantiles

import archbench_plugins.gpt1 as gpt1
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench.config import TrainingConfig
from archbench.data.batches import Batch, BatchSampler
from archbench.measure.clock import CPUClock
from archbench.measure.malloc import tune_malloc
from archbench.training.loop import train
from archbench.training.optimizers import decay_groups
from archbench.training.progress import Progress
from archbench.training.state import TrainState


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return archbench.load("gpt1").build(gpt1.PRESETS["nano"])


def new_sampler(batch_size: int) -> BatchSampler:
    config = gpt1.PRESETS["nano"]
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=300_000).astype(np.uint16)
    return BatchSampler(tokens, batch_size=batch_size, context_length=config.context_length, seed=0)


def recipe(batch_size: int, steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps, batch_size=batch_size, learning_rate=1e-3, schedule="constant", warmup_fraction=0.0
    )


class Harness:
    """Blocks of steps through ``train``; each block continues the last."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.architecture = archbench.load("gpt1")
        self.state = TrainState.create(new_model(), recipe(batch_size, 1))
        self.sampler = new_sampler(batch_size)

    def __call__(self, steps: int) -> None:
        train(
            self.state,
            self.sampler,
            recipe(self.batch_size, self.state.step + steps),
            step=self.architecture.train_step,
            clock=CPUClock(),
            progress=Progress("plain", stream=io.StringIO()),
        )


class ByHand:
    """The same steps in plain PyTorch."""

    def __init__(self, batch_size: int) -> None:
        self.model = new_model().train()
        config = recipe(batch_size, 1)
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.model.parameters(), config.weight_decay),
            lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True,
        )  # fmt: skip
        self.sampler = new_sampler(batch_size)
        self.step = 0

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            batch = self.sampler.batch(self.step)
            logits = self.model(batch.inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1


def seconds_per_step(block: Callable[[int], None], steps: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds; the latter count all threads, and hardly notice what else the machine does."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    block(steps)
    return (time.perf_counter_ns() - wall) * 1e-9 / steps, (time.process_time_ns() - cpu) * 1e-9 / steps


def no_step(state: TrainState, batch: Batch) -> Tensor:
    state.step += 1
    return torch.zeros(())


def own_cost(batch_size: int, steps: int) -> tuple[float, float]:
    """Seconds a step of the harness around an empty step, and those of them that are the sampler's."""
    harness = Harness(batch_size)
    ordinary, gpt1.next_token_step = gpt1.next_token_step, no_step
    try:
        harness(100)
        around = min(seconds_per_step(harness, steps) for _ in range(5))[0]
    finally:
        gpt1.next_token_step = ordinary

    def batches(count: int) -> None:
        for step in range(count):
            harness.sampler.batch(step)

    batches(100)
    return around, min(seconds_per_step(batches, steps) for _ in range(5))[0]


def compare(batch_size: int, rounds: int, steps: int) -> float:
    """Print one comparison; the seconds of a step by hand."""
    harness, by_hand = Harness(batch_size), ByHand(batch_size)
    harness(steps)
    by_hand(steps)
    weights = zip(harness.state.model.parameters(), by_hand.model.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in weights)
    sides: list[tuple[str, Callable[[int], None]]] = [("harness", harness), ("by hand", by_hand)]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in sides}
    for round_ in range(rounds):
        for name, block in sides if round_ % 2 == 0 else sides[::-1]:
            seconds[name].append(seconds_per_step(block, steps))
    print(
        f"\nbatch {batch_size} × context {gpt1.PRESETS['nano'].context_length}: {rounds} rounds of {steps} steps a side"
    )
    print(f"  same weights on both sides after the first {steps} steps, bit for bit: {'yes' if same else 'no'}")
    for name, values in seconds.items():
        print(f"  {name:8s} {_spread([1e3 * wall for wall, _ in values], 'ms a step')}")
    for index, kind in enumerate(("wall-clock", "CPU")):
        ratios = [a[index] / b[index] for a, b in zip(seconds["harness"], seconds["by hand"], strict=True)]
        print(f"  ratio    {_spread(ratios, f'in {kind} time (harness / by hand, round by round)', digits=4)}")
    return median(wall for wall, _ in seconds["by hand"])


def _spread(values: list[float], unit: str, digits: int = 2) -> str:
    low, middle, high = quantiles(values, n=4)
    return f"median {middle:.{digits}f}, quartiles {low:.{digits}f} to {high:.{digits}f} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    tune_malloc()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"gpt1 nano, float32, torch {torch.__version__}, {torch.get_num_threads()} threads")
    work = {size: compare(size, arguments.rounds, arguments.steps) for size in arguments.batch_sizes}
    print("\nthe harness around a step with nothing in it (best of 5 × 2,000 steps)")
    for size, seconds in work.items():
        around, sampling = own_cost(size, 2_000)
        own = around - sampling
        print(
            f"  batch {size:3d}: {1e6 * around:4.0f} µs a step, {1e6 * sampling:.0f} of them the sampler's, which "
            f"both sides pay; the other {1e6 * own:.0f} are {own / seconds:.3%} of a step by hand"
        )


if __name__ == "__main__":
    main()
