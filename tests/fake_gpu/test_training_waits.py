"""Training on a GPU: between two readings of the losses the host never waits, and a step's time holds its copies."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from archbench_plugins.gpt1 import GPT1
from counts import Counts, counts

from archbench.data.batches import Batch
from archbench.measure.clock import CUDAClock
from archbench.training.generators import forked_generators
from archbench.training.ledger import CUDA_READ_EVERY
from archbench.training.loop import train
from archbench.training.state import TrainState
from training_setup import model_config, recipe, sampler

DEVICE = torch.device("cuda:0")


class CountedBatches:
    """Notes the counts as each batch is drawn: all that the steps before asked for."""

    def __init__(self) -> None:
        self.inner, self.drawn = sampler(), dict[int, Counts]()

    def batch(self, step: int) -> Batch:
        self.drawn[step] = counts()
        return self.inner.batch(step)


class NotingClock(CUDAClock):
    def __init__(self) -> None:
        super().__init__(DEVICE)
        self.copies: list[int] = []

    def mark(self) -> Any:
        self.copies.append(counts().to_device)
        return super().mark()


def trained(dtype: Any = "bfloat16", **values: Any) -> tuple[CountedBatches, NotingClock]:
    config = recipe(steps=2 * CUDA_READ_EVERY, weight_decay=0.1, grad_clip=1.0, **values)
    torch.manual_seed(0)
    state = TrainState.create(GPT1(model_config(0.1)).to(DEVICE), config, device=DEVICE, dtype=dtype)
    batches, clock = CountedBatches(), NotingClock()
    train(state, batches, config, clock=clock)
    return batches, clock


@pytest.mark.parametrize(("dtype", "optimizer"), [
    ("bfloat16", "adamw"), ("float32", "sgd"), ("float16", "adamw"), ("float16", "sgd"), ("float16", "muon"),
])  # fmt: skip
def test_the_host_never_waits_between_two_readings(dtype: str, optimizer: str) -> None:
    batches, clock = trained(dtype, optimizer=optimizer)
    # The first steps compile and allocate, and check the head of the model.
    first, last = CUDA_READ_EVERY + 1, 2 * CUDA_READ_EVERY - 1
    seen = batches.drawn[last] - batches.drawn[first]
    assert seen.syncs == 0
    assert seen.to_host == 0
    assert seen.to_device == 2 * (last - first), "a step copies its inputs and its targets"
    starts, ends = clock.copies[-2 * CUDA_READ_EVERY :: 2], clock.copies[-2 * CUDA_READ_EVERY + 1 :: 2]
    assert [end - start for start, end in zip(starts, ends, strict=True)] == [2] * CUDA_READ_EVERY


def test_only_the_generators_of_the_named_device_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with forked_generators(DEVICE):
            torch.rand(2, device=DEVICE)
