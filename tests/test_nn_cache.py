"""The cache of a window holds W positions, and attends to just what a window over all of them would show."""

from __future__ import annotations

import pytest
import torch

import archbench
from archbench.errors import UsageError
from archbench.kernels import causal_attention
from archbench.measure.flops import cache_bytes, measured_cache_bytes, on_meta
from archbench.nn import KVCache

B, H, G, D, W, T = 2, 4, 2, 8, 5, 23

WAYS = {
    "one at a time": [1] * T,
    "shorter than the window": [3] * 7 + [2],
    "as long as the window": [5] * 4 + [3],
    "longer than the window": [7, 9, 7],
    "far longer, then single": [20, 1, 1, 1],
    "up to the edge, across it, single": [4, 1, 1, 6, 1, 10],
    "all at once": [T],
}


@pytest.mark.parametrize("sizes", list(WAYS.values()), ids=list(WAYS))
@pytest.mark.parametrize("window", [1, W, T, None])
def test_attention_from_the_cache_is_attention_over_everything(window: int | None, sizes: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(B, H, T, D), torch.randn(B, G, T, D), torch.randn(B, G, T, D)
    expected = causal_attention(q, k, v, window=window)
    cache = KVCache(layers=1, batch_size=B, heads=G, capacity=T, head_width=D, like=torch.empty(0), window=window)
    assert cache.keys.shape == (1, B, G, T if window is None else window, D)
    cache.keys.fill_(torch.nan)  # what was never written must never be seen
    cache.values.fill_(torch.nan)
    for size in sizes:
        part = slice(cache.length, cache.length + size)
        keys, values = cache.append(0, k[:, :, part], v[:, :, part])
        y = causal_attention(q[:, :, part], keys, values, window=window)
        torch.testing.assert_close(y, expected[:, :, part])
        cache.advance(size)


def test_cache_refuses_more_positions_than_it_was_made_for_whatever_its_window() -> None:
    cache = KVCache(layers=1, batch_size=1, heads=1, capacity=6, head_width=2, like=torch.empty(0), window=3)
    cache.append(0, torch.zeros(1, 1, 6, 2), torch.zeros(1, 1, 6, 2))
    cache.advance(6)
    with pytest.raises(UsageError, match="position 7 is past its capacity of 6"):
        cache.append(0, torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))


def test_cache_of_a_window_takes_the_same_bytes_at_any_length() -> None:
    mistral = archbench.load("mistral")
    config = mistral.config("nano")
    model = mistral.build(config)
    weighed = {T: measured_cache_bytes(model, 2, T) for T in (16, 32, 64, 128)}
    per_position = 2 * config.n_layer * 2 * config.n_kv_head * config.d_head * 4  # K and V of both sequences, float32
    assert weighed == {16: 16 * per_position, 32: 32 * per_position, 64: 32 * per_position, 128: 32 * per_position}
    assert {T: cache_bytes(on_meta(model), 2, T) for T in weighed} == weighed
