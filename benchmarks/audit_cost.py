"""What the audit of a run costs, as a share of the run: CPU seconds with and without it, in turns, in one process.

    python benchmarks/audit_cost.py [ARCHITECTURE ...]

Of a quick run it times a training step, the scoring of the validation text and a greedy decoding, each plain and
audited, A B A B. The share is the sum of the differences, as often as a quick run has them, over the plain parts of the
run: the start of processes and the conformance checks, which a whole run also has, would make it smaller. Spread: the
quartiles.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from archbench.config import RunConfig
from archbench.data.batches import BatchSampler
from archbench.data.dataset import prepare
from archbench.inference.sampling import Sampling
from archbench.measure.clock import CPUClock
from archbench.measure.score_audit import ScoreAudit, greedy_finding
from archbench.measure.scoring import score
from archbench.runs.audit import scoring_leaves_alone
from archbench.runs.models import build_model, load_architecture
from archbench.runs.preparation import start
from archbench.training.state import TrainState
from archbench.training.step_audit import Finding, StepAudit

TURNS = {"training step": 20, "scoring": 4, "decoding": 4}


def cpu_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def in_turns(plain: Callable[[], object], audited: Callable[[], object], turns: int) -> tuple[float, list[float]]:
    """Median CPU seconds of the plain one, and quartiles of the difference; the first turn warms up."""
    pairs = [(cpu_seconds(plain), cpu_seconds(audited)) for _ in range(turns + 1)][1:]
    return statistics.median(one for one, _ in pairs), statistics.quantiles((b - a for a, b in pairs), n=4)


def must_pass(finding: Finding) -> None:
    assert not finding.failed, finding


def measure(name: str, folder: Path) -> None:
    run = start(RunConfig(architecture=name, profile="quick", out=str(folder)))
    config, cpu = run.config, torch.device("cpu")
    architecture, model_config = load_architecture(run)
    data, T, B = prepare(config.data), model_config.context_length, config.training.batch_size
    state = TrainState.create(build_model(architecture, model_config, 0, cpu), config.training)
    sampler = BatchSampler(data.train, batch_size=B, context_length=T, seed=0)
    audit = StepAudit(state, 0, CPUClock(), must_pass)
    model = state.module

    def step() -> None:
        model.train()
        architecture.train_step(state, sampler.batch(state.step))

    def watched_step() -> None:
        model.train()
        batch = sampler.batch(state.step)
        audit.start(batch)
        audit.end(architecture.train_step(state, batch))

    def scoring(audit: ScoreAudit | None = None) -> None:
        score(
            model, data.validation, separator=data.tokenizer.separator, context_length=T,
            batch_size=config.quality.batch_size, audit=audit,
        )  # fmt: skip

    def audited_scoring() -> None:
        with scoring_leaves_alone(model, must_pass):
            scoring(ScoreAudit(0, torch.float32))

    speed = config.speed
    prompts = [
        torch.from_numpy(data.train[: size * length].astype("int64").reshape(size, length))
        for length in speed.prompt_lengths or ()
        for size in speed.batch_sizes
    ]

    def decoding(audited: bool = False) -> None:
        for prompt in prompts:
            tokens = list(architecture.generate(model, prompt, speed.new_tokens, Sampling(greedy=True)))
            if audited:
                must_pass(greedy_finding(model, prompt, tokens, T, 1e-3))
                must_pass(greedy_finding(model, prompt, tokens[:1], T, 1e-3))  # prefill's

    assert config.training.tokens is not None
    steps = -(-config.training.tokens // (B * T))
    watched = sum(audit.due(step) for step in range(steps))
    scorings = 1 + -(-steps // (config.training.validate_every or steps))
    repeats = speed.warmup + speed.repeats  # at least
    parts = {
        "training step": (step, watched_step, steps, watched),
        "scoring": (scoring, audited_scoring, scorings, 1),
        "decoding": (decoding, lambda: decoding(audited=True), repeats, 1),
    }
    total = cost = 0.0
    for part, (plain, audited, plain_times, audited_times) in parts.items():
        seconds, (low, middle, high) = in_turns(plain, audited, TURNS[part])
        total, cost = total + seconds * plain_times, cost + middle * audited_times
        print(
            f"{name:16} {part:14} {1e3 * seconds:8.1f} ms × {plain_times:4}, the audit {1e3 * middle:7.1f} ms "
            f"({1e3 * low:.1f} to {1e3 * high:.1f}) × {audited_times}"
        )
    print(f"{name:16} audit {cost:.2f} of {total:.1f} CPU seconds: {cost / total:.2%}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or ["gpt1"]:
            measure(name, Path(folder))
