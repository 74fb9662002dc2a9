"""Batches: every transition once an epoch; a batch depends on seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archbench.data.batches import Batch, BatchSampler
from archbench.errors import DataError, UsageError


def sampler(N: int, B: int, T: int, seed: int = 0) -> BatchSampler:
    return BatchSampler(np.arange(N, dtype=np.uint16), batch_size=B, context_length=T, seed=seed)


def test_targets_are_the_tokens_that_follow() -> None:
    batch = sampler(1000, B=4, T=16).batch(3)
    assert batch.inputs.shape == batch.targets.shape == (4, 16)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.targets, (batch.inputs + 1) % 1000)  # of the ring 0, 1, 2 … each token's successor


@given(N=st.integers(2, 400), T=st.integers(1, 50), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_trains_every_transition_once_but_for_less_than_a_context(
    N: int, T: int, seed: int, epoch: int
) -> None:
    if N < T + 1:
        return
    one = sampler(N, B=1, T=T, seed=seed)
    n = one.blocks_per_epoch
    batches = [one.batch(epoch * n + i) for i in range(n)]
    trained = torch.cat([batch.inputs.flatten() for batch in batches])
    assert len(set(trained.tolist())) == len(trained) > N - T
    assert torch.equal(torch.cat([batch.targets.flatten() for batch in batches]), (trained + 1) % N)


def test_epochs_cut_the_text_elsewhere_and_in_another_order() -> None:
    one = sampler(10_000, B=1, T=100)
    first, second = (
        [int(one.batch(epoch * one.blocks_per_epoch + i).inputs[0, 0]) for i in range(one.blocks_per_epoch)]
        for epoch in (0, 1)
    )
    assert first[0] % 100 != second[0] % 100
    assert np.argsort(first).tolist() != np.argsort(second).tolist()
    assert first != sorted(first)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    straight = sampler(3000, B=7, T=32, seed=3)
    batches = [straight.batch(step) for step in range(40)]  # three epochs; B does not divide one
    resumed = sampler(3000, B=7, T=32, seed=3)
    for step in (39, 0, 17, 13):
        assert torch.equal(resumed.batch(step).inputs, batches[step].inputs)
    assert not torch.equal(sampler(3000, B=7, T=32, seed=4).batch(0).inputs, batches[0].inputs)


def test_batch_size_does_not_change_the_order_of_sequences() -> None:
    small, large = sampler(3000, B=2, T=32), sampler(3000, B=8, T=32)
    joined = torch.cat([small.batch(step).inputs for step in range(4 * 30)])
    assert torch.equal(joined, torch.cat([large.batch(step).inputs for step in range(30)]))


def test_micro_batches_are_the_batch_in_order() -> None:
    batch = sampler(1000, B=6, T=8).batch(0)
    parts = batch.split(3)
    assert [part.inputs.shape for part in parts] == [(2, 8)] * 3
    assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    with pytest.raises(UsageError, match="6 sequences do not split into 4 equal"):
        batch.split(4)


def test_a_text_shorter_than_a_context_is_refused_with_both_lengths() -> None:
    with pytest.raises(DataError, match=r"32 tokens.*context of 32.*at most 31"):
        sampler(32, B=1, T=32)
    assert isinstance(sampler(33, B=1, T=32).batch(0), Batch)


def test_batches_move_as_a_whole() -> None:
    batch = sampler(100, B=2, T=8).batch(0).to("meta")
    assert batch.inputs.device.type == batch.targets.device.type == "meta"


def test_random_blocks_begin_anywhere_and_leave_some_of_the_text_unseen() -> None:
    tokens, T = np.arange(20_000), 10
    sampler = BatchSampler(tokens, batch_size=50, context_length=T, seed=3, sampling="random")
    batches = [sampler.batch(step) for step in range(40)]  # 2,000 blocks: as many as an epoch has
    for batch in batches:
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        assert torch.equal(batch.inputs + 1, batch.targets), "no block goes over the end"
    seen = torch.cat([batch.inputs.flatten() for batch in batches]).unique()
    assert len(seen) / len(tokens) == pytest.approx(1 - np.exp(-1), abs=0.03)
    again = BatchSampler(tokens, batch_size=50, context_length=T, seed=3, sampling="random").batch(7)
    other = BatchSampler(tokens, batch_size=50, context_length=T, seed=4, sampling="random").batch(7)
    assert torch.equal(again.inputs, batches[7].inputs)
    assert not torch.equal(other.inputs, again.inputs)
