"""Does the timing gate of ``archbench regress`` keep its promises? In simulations over recorded samples, and in trials.

    python benchmarks/regression_gate.py record [--pairs 24] [--load 2]     # A/A pairs -> regression_gate.npz
    python benchmarks/regression_gate.py simulate [--runs 10000]            # the rule, on what was recorded
    python benchmarks/regression_gate.py trial [--repeats 10] [--load 2] [--only slowed]   # the gate itself

It promises at most 2 % false alarms at the 10 % gate, and to catch at least 95 % of planted 20 % slow-downs.

- *record* times gpt1's ``nano`` preset against itself, in pairs of fresh processes that take turns, as the gate does,
  and keeps every sample (work / reference). ``--load`` starts that many processes which multiply and stream on and off.
- *simulate* draws pairs with replacement from those, and within each pair turns with replacement; which of the two is
  the head is drawn too. Then it applies the gate's own code, with its early stop and its rerun. A slow-down multiplies
  the head's times. What the gate would do without its rerun is shown beside it.
- *trial* runs the gate on a copy of gpt1 against another copy of it, the same or slowed: after each training step and
  each token CPU time is spun away, so that each costs 20 % more. Each comparison judges three times.

Intervals are exact binomial ones (Clopper and Pearson 1934), 95 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import archbench_plugins.gpt1 as gpt1
import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from archbench.child.process import end_group
from archbench.measure.machine import cpu_model, versions
from archbench.regression.estimates import Estimate, level, paired, unpaired
from archbench.regression.gate import SAMPLES, Plan, compare_alternated, decided, one_round
from archbench.regression.sides import Request, Side
from archbench.regression.verdict_table import LIMIT

RECORDED = Path(__file__).with_suffix(".npz")
PLAN = Plan()
SAVED = Plan(rounds=8, max_rounds=16)
"""Of pytest's --archbench-baseline."""
SHARES = {"train_step": 0.25, "prefill": 0.27, "decode": 0.16}
"""Of the CPU time of each, which is spun away after it: on a quiet machine each then costs 1.20 of what it did (a token
costs more than the spinning alone, since that puts other code into the caches)."""
SLOWED = f"""

import itertools
import time

SHARES = {SHARES}


def spin(count):
    for _ in range(count):
        pass


start = time.process_time()
spin(2_000_000)
PER_SECOND = 2_000_000 / (time.process_time() - start)


def slower(start, share):
    # Counted: a clock that is asked over and over lets the scheduler in, and would change more than 20 %.
    spin(int(share * PER_SECOND * (time.process_time() - start)))


def slower_step(state, batch):
    start = time.process_time()
    loss = next_token_step(state, batch)
    slower(start, SHARES["train_step"])
    return loss


def slower_tokens(tokens):
    for number in itertools.count():
        start = time.process_time()
        token = next(tokens, None)
        if token is None:
            return
        slower(start, SHARES["decode" if number else "prefill"])
        yield token
"""
LOAD = """
import os, random, time
import torch
from archbench.child.entry import end_with_parent
end_with_parent(os.getppid())
torch.set_num_threads(1)
x, y = torch.randn(700, 700), torch.randn(8, 1 << 20)
while True:
    end = time.time() + random.uniform(0, 1.5)
    while time.time() < end:
        x @ x
        y[0].add_(y[1])
    time.sleep(random.uniform(0, 0.5))
"""


@contextmanager
def competing(processes: int) -> Iterator[None]:
    """That many processes that use a CPU's arithmetic and its caches, most of the time."""
    command = [sys.executable, "-c", LOAD]
    started = [subprocess.Popen(command, process_group=0) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            end_group(process.pid)
            process.wait()


def record(pairs: int, load: int, out: Path) -> None:
    side = Side("gpt1", Request(["gpt1"]))
    ratios: dict[str, list[npt.NDArray[np.float32]]] = {metric: [] for metric in SAMPLES}
    loads = []
    with competing(load):
        for number in range(pairs):
            found = one_round([side, side], PLAN, number)
            for metric, count in SAMPLES.items():
                samples = np.array([found[which]["gpt1"][metric] for which in range(2)])  # (2, turns × count, 2)
                ratio = (samples[..., 1] / samples[..., 0]).reshape(2, PLAN.turns, count)
                ratios[metric].append(ratio.astype(np.float32))
            loads.append(os.getloadavg()[0])
            print(f"pair {number + 1} of {pairs}, load {loads[-1]:.1f}", flush=True)
            about = {**versions(), "cpu": cpu_model(), "cpus": os.cpu_count(), "competing": load, "load": loads}
            arrays = {metric: np.stack(kept) for metric, kept in ratios.items()}  # (pairs, 2, turns, samples)
            np.savez_compressed(out, about=np.array(json.dumps(about)), **arrays)


def simulate(runs: int, paths: Sequence[Path], slowdowns: Sequence[float], saved: bool) -> None:
    recorded = {metric: np.concatenate([np.load(path)[metric] for path in paths]) for metric in SAMPLES}
    for path in paths:
        about, pairs = json.loads(str(np.load(path)["about"])), len(np.load(path)["decode"])
        loads = about["load"]
        print(
            f"{path.name}: {pairs} pairs on {about['cpu']}, {about['cpus']} CPUs, torch {about['torch_version']}, "
            f"load average {min(loads):.1f} to {max(loads):.1f} meanwhile"
        )
    plan = SAVED if saved else PLAN
    print(f"{runs:,} runs of the rule; gate {LIMIT}, {plan.rounds} to {plan.max_rounds} rounds of {plan.turns} turns")
    print("slow-down  metric        failed            95 % interval      without rerun   unclear   rounds (mean)")
    for slowdown in slowdowns:
        for metric, ratios in recorded.items():
            generator = np.random.default_rng(0)
            outcomes = [_simulated(ratios, math.log(slowdown), generator, saved) for _ in range(runs)]
            failed, once, unclear = (sum(outcome[i] for outcome in outcomes) for i in range(3))
            rounds = sum(outcome[3] for outcome in outcomes) / runs
            low, high = clopper_pearson(failed, runs)
            print(
                f"{slowdown:9.2f}  {metric:10s}  {failed:6d} {failed / runs:8.2%}   [{low:.2%}, {high:.2%}]"
                f"   {once / runs:10.2%}   {unclear / runs:8.2%}   {rounds:6.1f}",
                flush=True,
            )


def _simulated(
    ratios: npt.NDArray[np.float32], shift: float, generator: np.random.Generator, saved: bool
) -> tuple[bool, bool, bool, int]:
    """Failed, failed before the rerun, unclear, and rounds of the first time."""
    base = [_levels(ratios, generator)[0] for _ in range(SAVED.rounds)] if saved else None
    first, rounds = _sequence(ratios, shift, generator, base)
    beyond = first.low > LIMIT
    again = beyond and _sequence(ratios, shift, generator, base)[0].low > LIMIT
    return again, beyond, not decided(first, LIMIT), rounds


def _sequence(
    ratios: npt.NDArray[np.float32], shift: float, generator: np.random.Generator, saved: Sequence[float] | None
) -> tuple[Estimate, int]:
    """The gate's rounds until it is decided, on pairs and turns drawn with replacement."""
    plan = PLAN if saved is None else SAVED
    base: list[float] = []
    head: list[float] = []
    while len(head) < plan.max_rounds:
        levels = _levels(ratios, generator)
        base.append(levels[0])
        head.append(levels[1] + shift)
        estimate = paired(base, head) if saved is None else unpaired(saved, head)
        if len(head) >= plan.rounds and decided(estimate, LIMIT):
            break
    return estimate, len(head)


def _levels(ratios: npt.NDArray[np.float32], generator: np.random.Generator) -> tuple[float, float]:
    """Of a pair, one of them called the base."""
    pair = ratios[generator.integers(len(ratios))]  # (2, turns, samples)
    first = generator.integers(2)
    turns = generator.integers(ratios.shape[2], size=(2, PLAN.turns))
    base, head = (pair[which][turns[which]].ravel() for which in (first, 1 - first))
    return level(np.stack([np.ones_like(base), base], 1)), level(np.stack([np.ones_like(head), head], 1))


def trial(repeats: int, load: int, only: str | None) -> None:
    source = Path(gpt1.__file__).read_text().replace('name="gpt1"', 'name="copy"')
    step, tokens = "next_token_step(state, batch)", "decode_with_cache(model, prompt, max_new_tokens, sampling)"
    slowed = source.replace(f"return {step}", "return slower_step(state, batch)")
    slowed = slowed.replace(f"return {tokens}", f"return slower_tokens({tokens})") + SLOWED
    assert slowed.count("return slower_") == 2
    counts = {kind: [0, 0] for kind in ("same", "slowed") if only in (None, kind)}
    with tempfile.TemporaryDirectory() as place, competing(load):
        files = {}
        for kind, text in (("base", source), ("same", source + "\n"), ("slowed", slowed)):
            files[kind] = Path(place, f"{kind}.py")
            files[kind].write_text(text)
        for repeat in range(repeats):
            for kind, count in counts.items():
                base, head = (Side(name, Request(["copy"], [str(files[name])])) for name in ("base", kind))
                rows = compare_alternated(base, head, PLAN)
                count[0] += sum(row.verdict == "FAIL" for row in rows)
                count[1] += len(rows)
                low, high = clopper_pearson(*count)
                said = "; ".join(
                    f"{row.metric} {row.ratio:.3f} [{row.estimate.low:.3f}, {row.estimate.high:.3f}] {row.verdict}"
                    for row in rows
                    if row.estimate is not None
                )
                print(
                    f"{repeat + 1} {kind}, load {os.getloadavg()[0]:.1f}: {said}\n"
                    f"    so far {count[0]} of {count[1]} failed, {low:.1%} to {high:.1%}",
                    flush=True,
                )


def clopper_pearson(successes: int, runs: int) -> tuple[float, float]:
    """Exact 95 % interval of a share."""
    interval = binomtest(successes, runs).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("--pairs", type=int, default=24)
    recording.add_argument("--load", type=int, default=2)
    recording.add_argument("--out", type=Path, default=RECORDED)
    simulation = commands.add_parser("simulate")
    simulation.add_argument("--runs", type=int, default=10_000)
    simulation.add_argument("--slowdowns", type=float, nargs="+", default=[1.0, 1.05, 1.1, 1.15, 1.2])
    simulation.add_argument("--saved", action="store_true", help="pytest's gate: the base was measured at another time")
    simulation.add_argument("recorded", type=Path, nargs="*", default=[RECORDED])
    real = commands.add_parser("trial")
    real.add_argument("--repeats", type=int, default=10)
    real.add_argument("--load", type=int, default=2)
    real.add_argument("--only", choices=["same", "slowed"])
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.pairs, arguments.load, arguments.out)
    elif arguments.command == "simulate":
        simulate(arguments.runs, arguments.recorded, arguments.slowdowns, arguments.saved)
    else:
        trial(arguments.repeats, arguments.load, arguments.only)


if __name__ == "__main__":
    main()
