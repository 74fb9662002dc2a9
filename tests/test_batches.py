"""Batches: every transition once an epoch; a batch depends on seed and step alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archbench.data import batches as module
from archbench.data import token_stream
from archbench.data.batches import Batch, BatchSampler, shuffled
from archbench.data.token_stream import ShardedTokens
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


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_an_order_that_no_array_lists_has_each_place_once(n: int, seed: int) -> None:
    keys = np.random.default_rng(seed).integers(1 << 64, size=6, dtype=np.uint64)
    order = shuffled(np.arange(n), n, keys)
    assert sorted(order.tolist()) == list(range(n))
    assert shuffled(np.array([n - 1, 0]), n, keys).tolist() == [order[n - 1], order[0]]


def test_the_order_of_billions_of_blocks_is_random_and_takes_no_memory() -> None:
    keys = np.random.default_rng(0).integers(1 << 64, size=6, dtype=np.uint64)
    n = 3 * 10**9
    found = shuffled(np.arange(20_000), n, keys)
    assert len(np.unique(found)) == len(found)
    assert np.histogram(found, 10, (0, n))[0] == pytest.approx(np.full(10, 2000), rel=0.1)
    steps = np.diff(found) % n
    assert np.histogram(steps, 10, (0, n))[0] == pytest.approx(np.full(10, 2000), rel=0.1)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_long_text_is_trained_once_an_epoch_too_in_one_file_or_in_several(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LISTED", 10)
    tokens = np.arange(3000, dtype=np.uint16)
    stream = ShardedTokens(np.array_split(tokens, parts)) if parts > 1 else tokens
    one = BatchSampler(stream, batch_size=7, context_length=32, seed=1)
    assert one.blocks_per_epoch == 93
    batches = [one.batch(step) for step in range(2 * 93 // 7 + 1)]  # B does not divide an epoch
    trained = torch.cat([batch.inputs for batch in batches])
    for epoch in (trained[:93], trained[93 : 2 * 93]):
        assert len(epoch.unique()) == 93 * 32
    assert torch.equal((trained[:, :-1] + 1) % 3000, trained[:, 1:])
    again = BatchSampler(stream, batch_size=7, context_length=32, seed=1)
    assert torch.equal(again.batch(19).inputs, batches[19].inputs)
    assert not torch.equal(trained[:93], trained[93 : 2 * 93])


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident pages from /proc")
def test_what_was_read_of_a_mapped_file_does_not_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_stream, "MOST_RESIDENT", 2 << 20)
    tokens = np.lib.format.open_memmap(tmp_path / "tokens.npy", "w+", np.uint16, (8 << 20,))
    tokens[:] = 1
    del tokens

    def resident() -> int:
        status = Path("/proc/self/status").read_text("utf-8")
        return int(status.partition("RssFile:")[2].split()[0]) >> 10

    before, most = resident(), 0
    sampler = BatchSampler(np.load(tmp_path / "tokens.npy", mmap_mode="r"), batch_size=8, context_length=4096, seed=0)
    for step in range(sampler.blocks_per_epoch // 8):
        sampler.batch(step)
        most = max(most, resident())
    assert most - before < 8, "MiB, of 16 that were read"
