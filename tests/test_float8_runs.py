"""Runs with ``--float8``: rows say what multiplied, an emulation has no speed, and the loss is bfloat16's."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from archbench import read_results
from archbench.config import DataConfig, RunConfig, TrainingConfig
from archbench.data.batches import BatchSampler
from archbench.data.dataset import Dataset, prepare
from archbench.kernels.float8_linear import Which
from archbench.plugin.registry import load
from archbench.training.state import TrainState
from command_line import archbench
from small_runs import UNCHECKED, value, with_small_corpus


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = with_small_corpus(tmp_path_factory.mktemp("float8"))
    options = ("--dtype", "bfloat16", "--float8", "all", "--phases", "train,quality")
    done = archbench("run", "gpt1", *UNCHECKED, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return read_results(folder / "results")


def test_rows_say_what_was_in_float8_and_that_it_was_emulated(frame: pd.DataFrame) -> None:
    ran = {phase: set(rows.products) for phase, rows in frame[frame.phase != "environment"].groupby("phase")}
    assert ran["train"] == {"float8-head-emulated+float8-layers-emulated"}
    assert ran["quality"] == {"none"}, "what is measured of the weights is computed in the run's dtype"
    assert set(frame.dtype) == {"bfloat16"}


def test_no_speed_of_an_emulation_is_a_result(frame: pd.DataFrame) -> None:
    metrics = set(frame[frame.phase == "train"].metric)
    assert metrics.isdisjoint({"tokens_per_second", "model_flops_per_second", "mfu", "joules_per_token"})
    assert {"loss", "steps", "training_seconds", "peak_memory_bytes"} <= metrics
    assert value(frame, "train", "audit_passed") == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float8_beside_another_dtype_is_refused_before_anything_is_made(dtype: str, tmp_path: Path) -> None:
    done = archbench("run", "gpt1", "--profile", "smoke", "--dtype", dtype, "--float8", "head", cwd=tmp_path)
    assert done.returncode == 5
    assert not (tmp_path / "results").exists()
    assert "bfloat16" in done.stderr
    assert "--float8 head" in done.stderr or dtype == "float16", "which a CPU refuses by itself"


def test_a_model_in_parts_is_refused(tmp_path: Path) -> None:
    options = ("--dtype", "bfloat16", "--float8", "head", "--nproc", "2", "--parallel", "fsdp")
    done = archbench("run", "gpt1", *UNCHECKED, *options, cwd=with_small_corpus(tmp_path))
    assert done.returncode == 2
    assert "float8" in done.stderr


def test_earlier_runs_keep_their_hash() -> None:
    usual, asked = (RunConfig(architecture="gpt1", profile="smoke", **given) for given in ({}, {"float8": "head"}))  # type: ignore[arg-type]
    assert "float8" not in usual.model_dump(mode="json")
    assert usual.config_hash() != asked.config_hash()


# --- the loss curve

STEPS, EVERY, B, T = 300, 50, 8, 64


@cache
def text() -> Dataset:
    return prepare(DataConfig(corpus="shakespeare", tokenizer="bpe:1024"))


def curve(name: str, which: Which, seed: int) -> list[float]:
    """Held-out loss in bfloat16, nats/token, after every :data:`EVERY` updates of the nano preset."""
    architecture, data = load(name), text()
    config = architecture.config("nano", vocab_size=data.tokenizer.vocab_size, context_length=T)
    recipe = TrainingConfig(steps=STEPS, batch_size=B, learning_rate=1e-3)
    torch.manual_seed(seed)
    model = architecture.build(config)
    state = TrainState.create(model, recipe, dtype="bfloat16", float8=which)
    trained, held_out = (
        BatchSampler(tokens, batch_size=B, context_length=T, seed=one)
        for tokens, one in ((data.train, seed), (np.concatenate([d.tokens for d in data.validation]), 0))
    )
    losses = []
    for number in range(STEPS):
        architecture.train_step(state, trained.batch(number))
        if (number + 1) % EVERY == 0:
            losses.append(held_out_loss(model, held_out))
    return losses


def held_out_loss(model: nn.Module, sampler: BatchSampler) -> float:
    """Of the same 16 batches each time."""
    nats = []
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for number in range(16):
            batch = sampler.batch(number)
            logits = model(batch.inputs).float()
            nats.append(float(nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())))
    model.train()
    return math.fsum(nats) / len(nats)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt1", "llama"])
def test_the_loss_curve_in_float8_is_bfloat16s(name: str) -> None:
    """Of the same seed and batches as bfloat16's: a seed makes a difference, float8 makes no larger one.

    The standard deviation between seeds, over all points, is the measure; two seeds differ by the root of two of it.
    """
    seeds = np.array([curve(name, "none", seed) for seed in (0, 1, 2)])  # (3, points)
    assert seeds[0, -1] < seeds[0, 0] - 0.5, "there was something to learn"
    between = float(np.sqrt(2 * seeds.var(axis=0, ddof=1).mean()))
    for which in ("head", "all"):
        away = np.array(curve(name, which, 0)) - seeds[0]
        assert (away != 0).all(), "it was in float8"
        assert abs(away.mean()) <= between, (which, away, between)
        assert np.abs(away).max() <= 3 * between, (which, away, between)
