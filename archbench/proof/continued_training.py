"""Training that breaks off and goes on, with the device's own random numbers; and losses that float16 scales."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archbench.config import DTypeName, Float8Name, TrainingConfig
from archbench.data.batches import Batch, BatchSampler
from archbench.measure.clock import clock_for
from archbench.plugin.registry import load
from archbench.proof.statements import Bench, Statements, judged
from archbench.testing.subject import seed_generators
from archbench.training.captured_update import updates_of
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.state import TrainState
from archbench.training.steps import next_token_step

STEPS, BROKEN, EVERY = 24, 17, 5
LEARNING_RATE = 3e-3
AGREES = 0.02
"""Relative difference of the last losses in float16 and float32: far above rounding, far below a step that is lost."""


class BrokenOffError(Exception):
    """A run that is gone before an update."""


class BreakingOff(BatchSampler):
    """Batches up to one that cannot be read."""

    stop: int | None = None

    def batch(self, step: int, rows: Any = None) -> Batch:
        if step == self.stop:
            raise BrokenOffError
        return super().batch(step, rows)


def resumed(bench: Bench) -> Statements:
    """Losses of a run with dropout that breaks off and goes on, against those of an unbroken one, by updates of both
    kinds."""
    for kind in ("eager", "graph" if bench.gpu else "static"):
        yield from _resumed(kind, bench)


def _resumed(kind: str, bench: Bench) -> Statements:
    with tempfile.TemporaryDirectory() as folder:
        try:
            nano_losses(bench, kind=kind, checkpoints=Path(folder), stop=BROKEN)
        except BrokenOffError:
            torch.rand(7, device=bench.device)  # something else has drawn random numbers
        went_on = nano_losses(bench, kind=kind, checkpoints=Path(folder))
    unbroken = nano_losses(bench, kind=kind)
    place = went_on.resumed_from
    found, expected = ([record.loss for record in one.steps] for one in (went_on, unbroken))
    differing = [number for number, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
    shown = f"resumed after update {place}; " + ("all equal" if not differing else f"other from update {differing[0]}")
    what = f"gpt1 with dropout, {STEPS} {kind} updates, broken off at the {BROKEN + 1}th: losses bit for bit"
    yield judged(what, place == BROKEN - BROKEN % EVERY and not differing, "equal to an unbroken run's", shown)
    differs = found[0] != found[-1] and all(np.isfinite(found))
    yield judged("its losses are finite and move", differs, "yes", f"{found[0]:.4f} to {found[-1]:.4f}")


def scaled(bench: Bench) -> Statements:
    """float16 with loss scaling ends near float32, for every optimizer."""
    for optimizer in ("adamw", "sgd", "muon"):
        exact = nano_losses(bench, optimizer=optimizer, dropout=False).steps[-1].loss
        found = nano_losses(bench, optimizer=optimizer, dropout=False, dtype="float16").steps[-1].loss
        away = abs(found - exact) / exact if exact else float("inf")
        what = f"{optimizer}, float16: the loss after {STEPS} updates"
        yield judged(what, away <= AGREES, f"within {AGREES:.0%} of {exact:.4f} in float32", f"{found:.4f}")


def nano_losses(
    bench: Bench, *, kind: str = "eager", checkpoints: Path | None = None, stop: int | None = None,
    optimizer: str = "adamw", dropout: bool = True, dtype: DTypeName = "float32", float8: Float8Name = "none",
    seed: int = 0, steps: int = STEPS,
) -> TrainingHistory:  # fmt: skip
    """Train gpt1's smallest preset on text in which each token is one of three that may follow."""
    architecture = load("gpt1")
    names = "embd_dropout", "resid_dropout", "attn_dropout"
    dropped: dict[str, Any] = dict.fromkeys(names, 0.1 if dropout else 0.0)
    config = architecture.config("nano", **dropped)
    length = min(64, config.context_length)
    moves = np.random.default_rng(7).integers(1, 4, size=20_000)
    text = (np.cumsum(moves) % config.vocab_size).astype(np.uint16)
    values: dict[str, Any] = {"optimizer": optimizer, "learning_rate": LEARNING_RATE, "checkpoint_every": EVERY}
    recipe = TrainingConfig(steps=steps, batch_size=8, **values)
    seed_generators(seed, bench.device)
    model = architecture.build(config).to(bench.device)
    state = TrainState.create(model, recipe, device=bench.device, dtype=dtype, float8=float8)
    batches = BreakingOff(text, batch_size=8, context_length=length, seed=seed)
    batches.stop = stop
    updates = updates_of(kind, state, next_token_step)
    return train(state, batches, recipe, clock=clock_for(bench.device), updates=updates, checkpoints=checkpoints)
