"""A GPT-1 that trains in milliseconds, its data and its recipe: what the training tests share."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from archbench_plugins.gpt1 import GPT1, GPT1Config

from archbench.config import TrainingConfig
from archbench.data.batches import BatchSampler
from archbench.measure.clock import CPUClock
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.state import TrainState

V, T, B = 61, 16, 4

FORKSERVER = multiprocessing.get_context("forkserver")
"""Processes that may be killed: forks of one that has imported what training needs and done nothing yet."""
FORKSERVER.set_forkserver_preload(["torch._dynamo", "archbench.training.loop", "archbench_plugins.gpt1"])


def model_config(dropout: float = 0.0) -> GPT1Config:
    return GPT1Config(
        vocab_size=V, context_length=T, n_layer=2, n_head=2, d_model=16, d_ff=64,
        embd_dropout=dropout, resid_dropout=dropout, attn_dropout=dropout,
    )  # fmt: skip


def recipe(**values: Any) -> TrainingConfig:
    budgets = ("steps", "tokens", "flops", "seconds")
    budget = {} if any(name in values for name in budgets) else {"steps": 20}
    return TrainingConfig(**({"batch_size": B, "learning_rate": 1e-2} | budget | values))


def sampler(batch_size: int = B, seed: int = 0) -> BatchSampler:
    """Batches of text with something to learn: each token is one of three that may follow the last."""
    random = np.random.default_rng(7)
    tokens = np.cumsum(random.integers(1, 4, size=4_000)) % V
    return BatchSampler(tokens.astype(np.uint16), batch_size=batch_size, context_length=T, seed=seed)


def new_state(config: TrainingConfig, *, dropout: float = 0.0, seed: int = 0, **options: Any) -> TrainState:
    torch.manual_seed(seed)
    return TrainState.create(GPT1(model_config(dropout)), config, **options)


def run(config: TrainingConfig, checkpoints: Path | None = None, *, dropout: float = 0.0) -> TrainingHistory:
    """One run from the start, or from the newest checkpoint."""
    state = new_state(config, dropout=dropout)
    batches = sampler(config.batch_size * config.accumulation)
    return train(state, batches, config, clock=CPUClock(), checkpoints=checkpoints)


def losses(history: TrainingHistory) -> list[float]:
    return [record.loss for record in history.steps]
