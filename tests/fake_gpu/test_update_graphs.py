"""Updates from captured graphs: one launch an update, the copies of what differs, no wait; and what is not captured."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from archbench_plugins.gpt1 import GPT1
from counts import Counts, counted, counts
from torch import Tensor

import archbench
from archbench.config import TrainingConfig
from archbench.data.batches import Batch
from archbench.errors import UsageError
from archbench.kernels import attention_backend
from archbench.measure.clock import CUDAClock
from archbench.training.captured_update import WARM_UPDATES, updates_of
from archbench.training.ledger import CUDA_READ_EVERY
from archbench.training.loop import train
from archbench.training.state import TrainState
from archbench.training.steps import next_token_step
from archbench.training.updates import Updates
from training_setup import model_config, recipe, sampler

DEVICE = torch.device("cuda:0")
NAMES = ["gpt1", "gpt2", "llama", "mistral", "gemma", "mixtral", "mamba2", "gated_deltanet", "rwkv7", "hybrid"]


def taken(updates: Updates, batch: Batch, number: int = 1) -> None:
    for _ in range(number):
        updates.begin(1e-3, watched=False)
        updates.take(updates.place(batch))


def captured(name: str, preset: str = "nano", B: int = 4, dtype: Any = "bfloat16") -> tuple[Updates, Batch]:
    """Updates of a built-in architecture, just captured: the last one was a replay."""
    plugin = importlib.import_module(f"archbench_plugins.{name}")
    config = plugin.PRESETS[preset]
    made = TrainingConfig(batch_size=B, learning_rate=1e-4, steps=10)
    state = TrainState.create(plugin.build(config).to(DEVICE), made, device=DEVICE, dtype=dtype)
    updates = updates_of("graph", state, getattr(plugin, "train_step", next_token_step))
    tokens = torch.zeros(B, config.context_length, dtype=torch.int64)
    batch = Batch(tokens, tokens)
    taken(updates, batch, WARM_UPDATES + 1)
    assert (updates.kind, updates.reason, updates.replayed) == ("graph", None, True)
    return updates, batch


def of_a_replay(updates: Updates, batch: Batch) -> Counts:
    step = updates.state.step
    seen = counted(lambda: taken(updates, batch))
    assert updates.state.step == step + 1
    return seen


CASES = [(name, dtype) for name in NAMES for dtype in ("bfloat16", "float32", "float16")]


@pytest.mark.parametrize(("name", "dtype"), [
    case for case in CASES if case[0] != "mixtral" or case[1] == "bfloat16"  # torch._grouped_mm takes no other
])  # fmt: skip
def test_an_update_is_one_graph_launch_and_no_wait(name: str, dtype: str) -> None:
    seen = of_a_replay(*captured(name, dtype=dtype))
    assert (seen.graph_launches, seen.syncs, seen.to_host, seen.refused) == (1, 0, 0, 0)
    # Inputs, targets, and the rates with the seeds; and the loss with the norm, which the next replay overwrites.
    assert (seen.to_device, seen.on_device) == (3, 1)
    assert seen.kernels in (0, 2), "torch hands its generator's state to a graph that draws random numbers"
    assert seen.graph_nodes > 60


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_an_update_of_the_published_gpt1(backend: str) -> None:
    with attention_backend(backend):
        seen = of_a_replay(*captured("gpt1", "paper", 32))
    assert (seen.graph_launches, seen.kernels, seen.copies, seen.syncs) == (1, 2, 4, 0)
    assert seen.graph_nodes == {"sdpa": 427, "triton": 427}[backend], "425 as eager, and the loss with the norm"


def test_the_host_never_waits_between_two_readings_and_a_step_holds_its_copies() -> None:
    """The training loop with replays, of which one is preceded by an audit and one by a checkpoint."""
    made = recipe(steps=3 * CUDA_READ_EVERY, weight_decay=0.1, accumulation=2)
    torch.manual_seed(0)
    state = TrainState.create(GPT1(model_config(0.1)).to(DEVICE), made, device=DEVICE, dtype="bfloat16")
    updates = updates_of("graph", state, next_token_step)
    inner, drawn = sampler(8), dict[int, Counts]()

    class Counted:
        batch_size = 8

        def batch(self, step: int) -> Batch:
            drawn[step] = counts()
            return inner.batch(step)

    history = train(state, Counted(), made, clock=CUDAClock(DEVICE), updates=updates)
    assert (len(history.steps), updates.kind, updates.asked) == (3 * CUDA_READ_EVERY, "graph", [0, 1, 2])
    first, last = CUDA_READ_EVERY + 1, 2 * CUDA_READ_EVERY - 1
    seen = drawn[last] - drawn[first]
    number = last - first
    assert (seen.graph_launches, seen.syncs, seen.to_host, seen.to_device) == (number, 0, 0, 3 * number)
    assert updates.capture_seconds is not None


def test_a_watched_update_is_asked_operation_by_operation_and_the_next_is_a_replay() -> None:
    updates, batch = captured("gpt1")
    updates.begin(1e-3, watched=True)
    seen = counted(lambda: updates.take(updates.place(batch)))
    assert (seen.graph_launches, updates.replayed) == (0, False)
    assert seen.kernels > 60
    assert of_a_replay(updates, batch).graph_launches == 1


def test_a_capture_takes_no_update_and_a_checkpoint_knows_of_no_graph() -> None:
    updates, _ = captured("gpt1")
    assert updates.state.step == WARM_UPDATES + 1
    groups = updates.state.optimizer.state_dict()["param_groups"]
    assert [(group["lr"], group["capturable"]) for group in groups] == [(pytest.approx(1e-3), False)] * 2
    steps = [values["step"] for values in updates.state.optimizer.state.values()]
    assert all(step.is_cuda for step in steps)
    assert all(parameter.grad is None for parameter in updates.state.module.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_optimizers(optimizer: str, dtype: Any) -> None:
    made = recipe(optimizer=optimizer, weight_decay=0.1, accumulation=2)
    state = TrainState.create(GPT1(model_config(0.1)).to(DEVICE), made, device=DEVICE, dtype=dtype)
    updates, batch = updates_of("graph", state, next_token_step), sampler(8).batch(0)
    taken(updates, batch, WARM_UPDATES + 1)
    assert updates.reason is None
    seen = of_a_replay(updates, batch)
    assert (seen.graph_launches, seen.kernels, seen.syncs) == (1, 2, 0)


def waits(state: TrainState, batch: Batch) -> Tensor:
    loss = next_token_step(state, batch)
    float(loss)
    return loss


def copies_from_pageable_memory(state: TrainState, batch: Batch) -> Tensor:
    ahead = torch.zeros(batch.inputs.shape, dtype=torch.int64).to(DEVICE)
    return next_token_step(state, Batch(batch.inputs + ahead, batch.targets))


def counts_what_it_finds(state: TrainState, batch: Batch) -> Tensor:
    assert batch.inputs[batch.inputs > 0] is not None
    return next_token_step(state, batch)


@pytest.mark.parametrize("step", [waits, copies_from_pageable_memory, counts_what_it_finds])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_cuda_refuses_is_asked_operation_by_operation_with_the_reason(
    step: Callable[[TrainState, Batch], Tensor], dtype: Any
) -> None:
    state = TrainState.create(GPT1(model_config(0.1)).to(DEVICE), recipe(), device=DEVICE, dtype=dtype)
    updates, batch = updates_of("graph", state, step), sampler().batch(0)
    taken(updates, batch, WARM_UPDATES + 3)
    assert (updates.kind, updates.replayed, state.step) == ("static", False, WARM_UPDATES + 3)
    assert updates.reason is not None
    assert updates.reason.startswith("its update cannot be captured: ")
    assert "captur" in updates.reason.removeprefix("its update cannot be captured: ")
    assert updates.asked == [*range(WARM_UPDATES + 3)]
    assert of_a_replay(*captured("gpt1")).graph_launches == 1, "and disturbs no other capture"


def test_muon_and_several_micro_batches_of_another_size_say_why() -> None:
    made = recipe(optimizer="muon")
    state = TrainState.create(GPT1(model_config()).to(DEVICE), made, device=DEVICE)
    updates = updates_of("graph", state, next_token_step)
    assert (updates.kind, updates.reason) == ("eager", "MuonWithAdamW takes its learning rate from the host")
    updates, _ = captured("gpt1")
    with pytest.raises(UsageError, match="differ in size"):
        taken(updates, sampler().batch(0))


@pytest.mark.slow
def test_counts_of_an_update_are_the_committed_ones() -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    committed = json.loads((benchmarks / "gpu_counts.json").read_text())["training"]
    found = runpy.run_path(str(benchmarks / "gpu_counts.py"))["training"]()
    assert found == committed, "if it is meant: DIR/run python benchmarks/gpu_counts.py training"


@pytest.mark.slow
def test_the_phase_train_says_that_its_updates_were_graphs(tmp_path: Path) -> None:
    options = "--preset nano --device cuda --dtype bfloat16 --profile smoke --phases train --corpus shakespeare"
    options += " --tokenizer bpe:1024 --config training.steps=40 --config updates=graph --unchecked --quiet --out"
    command = ["-m", "archbench", "run", "gpt1", *options.split(), str(tmp_path)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    rows = archbench.read_results(tmp_path)
    values = rows[rows.phase == "train"].groupby("metric").value
    assert values.min()["graph_captured"] == 1
    assert values.min()["capture_seconds"] > 0
    of_each_kind = [values.count()[f"{kind}_seconds"] for kind in ("first_step", "asked_step", "step")]
    assert sum(of_each_kind) == 40
    assert of_each_kind[0] == 1
    assert of_each_kind[1] in range(2, 7), "two before the capture, and those that the audit watches"
