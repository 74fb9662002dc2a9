"""Decoding: the cache changes nothing but the time, and what cannot be decoded is refused at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archbench
from archbench import Sampling, decode_with_cache, decode_without_cache

V, T = 50, 16
Decode = Callable[[nn.Module, Tensor, int, Sampling], Iterator[Tensor]]
both = pytest.mark.parametrize("decode", [decode_with_cache, decode_without_cache])


@dataclass(frozen=True)
class Recording(Sampling):
    """Keeps the logits that it is given."""

    logits: list[Tensor] = field(default_factory=list)

    def pick(self, logits: Tensor) -> Tensor:
        self.logits.append(logits.clone())
        return super().pick(logits)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    gpt1 = archbench.load("gpt1")
    sizes = {"n_layer": 3, "n_head": 4, "d_model": 32, "d_ff": 64}
    model = gpt1.build(gpt1.config("paper", vocab_size=V, context_length=T, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:  # initial weights are so small that every token is nearly as likely
                parameter.mul_(5)
    return model


@pytest.fixture
def prompt() -> Tensor:
    return torch.randint(V, (3, 5), generator=torch.Generator().manual_seed(1))


def test_cached_logits_equal_the_whole_forward_pass_at_every_position_and_past_the_context(
    model: Any, prompt: Tensor
) -> None:
    new_tokens = 2 * T
    with_cache, without = Recording(greedy=True), Recording(greedy=True)
    tokens = torch.stack(list(decode_with_cache(model, prompt, new_tokens, with_cache)), dim=1)
    again = torch.stack(list(decode_without_cache(model, prompt, new_tokens, without)), dim=1)
    assert tokens.shape == (3, new_tokens)
    assert torch.equal(tokens, again)

    read = torch.cat([prompt, tokens], dim=1)
    model.eval()
    for position, (cached, uncached) in enumerate(zip(with_cache.logits, without.logits, strict=True)):
        end = prompt.shape[1] + position
        with torch.no_grad():
            expected = model(read[:, max(0, end - T) : end])[:, -1]  # what the last T tokens predict, as documented
        torch.testing.assert_close(cached, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(uncached, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[16], [1] * 16, [5, 1, 7, 3], [15, 1], [1, 15]])
def test_prefill_in_chunks_gives_the_same_logits(model: Any, chunks: list[int]) -> None:
    tokens = torch.randint(V, (2, T))
    model.eval()
    with torch.no_grad():
        expected = model(tokens)  # (B, T, V)
        cache = model.new_cache(2, T)
        for chunk in tokens.split(chunks, dim=1):
            logits = model.extend(chunk, cache)
            torch.testing.assert_close(logits, expected[:, cache.length - 1], atol=1e-5, rtol=0)
    assert cache.length == T


def test_cache_is_allocated_once_beside_the_weights_and_in_their_dtype(model: Any) -> None:
    cache = model.bfloat16().new_cache(2, T)
    before = [(tensor.data_ptr(), tensor.numel(), tensor.dtype) for tensor in cache.tensors()]
    assert sum(numel for _, numel, _ in before) == 2 * 3 * 2 * T * 32  # keys and values, L, B, positions, C
    with torch.no_grad():
        for token in torch.randint(V, (2, T)).split(1, dim=1):
            model.extend(token, cache)
    assert [(tensor.data_ptr(), tensor.numel(), tensor.dtype) for tensor in cache.tensors()] == before
    assert {dtype for *_, dtype in before} == {torch.bfloat16}


def test_cache_refuses_more_positions_than_it_has_or_the_model_knows(model: Any) -> None:
    with pytest.raises(ValueError, match="capacity"):
        model.new_cache(1, T + 1)
    cache = model.new_cache(1, 2)
    with pytest.raises(ValueError, match="cache"):
        model.extend(torch.zeros(1, 3, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="tokens"):
        model(torch.zeros(1, T + 1, dtype=torch.int64))


def test_cache_works_under_autocast(model: Any, prompt: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert len(list(decode_with_cache(model, prompt, T, Sampling(greedy=True)))) == T


@both
def test_sequences_that_end_repeat_eos_until_all_have(decode: Decode, model: Any, prompt: Tensor) -> None:
    free = torch.stack(list(decode(model, prompt, 30, Sampling(greedy=True))), dim=1)  # (B, 30)
    eos = int(free[0, 3])
    ended = torch.stack(list(decode(model, prompt, 30, Sampling(greedy=True, eos=eos))), dim=1)
    ends = []
    for row, unended in zip(ended.tolist(), free.tolist(), strict=True):
        end = unended.index(eos) if eos in unended else len(unended)
        ends.append(end)
        assert row[: end + 1] == unended[: end + 1][: len(row)]
        assert set(row[end:]) <= {eos}
    assert ended.shape[1] == min(30, max(ends) + 1), "it stops with the last sequence"


@both
def test_same_generator_seed_gives_the_same_tokens(decode: Decode, model: Any, prompt: Tensor) -> None:
    def tokens(seed: int) -> list[list[int]]:
        sampling = Sampling(top_p=0.9, generator=torch.Generator().manual_seed(seed))
        return [token.tolist() for token in decode(model, prompt, 20, sampling)]

    assert tokens(1) == tokens(1) != tokens(2)


@both
def test_it_streams_and_leaves_modes_and_gradients_as_it_found_them(decode: Decode, model: Any, prompt: Tensor) -> None:
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    tokens = decode(model, prompt, 4, Sampling())
    assert [module.training for module in model.modules()] == modes, "nothing happens before the first token"
    next(tokens)
    assert not any(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    tokens.close()  # type: ignore[attr-defined]
    assert [module.training for module in model.modules()] == modes


@both
@pytest.mark.parametrize(
    ("prompt", "new_tokens", "sampling", "name"),
    [
        (torch.zeros(1, T + 1, dtype=torch.int64), 1, {}, "prompt"),
        (torch.zeros(1, 0, dtype=torch.int64), 1, {}, "prompt"),
        (torch.zeros(0, 3, dtype=torch.int64), 1, {}, "prompt"),
        (torch.zeros(3, dtype=torch.int64), 1, {}, "prompt"),
        (torch.zeros(1, 3, dtype=torch.int32), 1, {}, "prompt"),
        (torch.zeros(1, 3), 1, {}, "prompt"),
        (torch.tensor([[0, V]]), 1, {}, f"prompt: token id {V}"),
        (torch.tensor([[0, -1]]), 1, {}, "prompt: token id -1"),
        (torch.zeros(1, 3, dtype=torch.int64), 0, {}, "max_new_tokens"),
        (torch.zeros(1, 3, dtype=torch.int64, device="meta"), 1, {}, "prompt: it is on meta"),
        (torch.zeros(1, 3, dtype=torch.int64), 1, {"eos": V}, "eos"),
    ],
)
def test_what_cannot_be_decoded_is_refused_at_the_call(
    decode: Decode, model: Any, prompt: Tensor, new_tokens: int, sampling: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        decode(model, prompt, new_tokens, Sampling(**sampling))


def test_models_that_cannot_be_decoded_are_refused_by_name(prompt: Tensor) -> None:
    with pytest.raises(ValueError, match="Linear: it has no decoding cache"):
        decode_with_cache(nn.Linear(1, 1), prompt, 1, Sampling())
    with pytest.raises(ValueError, match="Linear: it has no config"):
        decode_without_cache(nn.Linear(1, 1), prompt, 1, Sampling())
