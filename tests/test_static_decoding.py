"""Steps of static shapes decode as eager ones do, on CPUs too, where CUDA graphs of them cannot be tried."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archbench
from archbench import Sampling, decode_with_cache, decode_without_cache
from archbench.inference.decoding_kind import decoding
from archbench.nn import cache as caches

V, T = 64, 48
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
DEFAULT = ("gpt1", "mixtral", "hybrid")  # learned positions; experts; recurrence, a ring of keys and rotary positions
NAMES = [
    pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow)
    for name in PROJECT["project"]["entry-points"]["archbench"]
]


@dataclass(frozen=True)
class Recording(Sampling):
    """Keeps the logits that it is given."""

    logits: list[Tensor] = field(default_factory=list)

    def pick(self, logits: Tensor) -> Tensor:
        self.logits.append(logits.clone())
        return super().pick(logits)


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "SMALLEST_REACH", 8)  # so that few tokens cross several


def _model(name: str) -> Any:
    torch.manual_seed(0)
    architecture = archbench.load(name)
    window = {"window": 12} if "window" in type(architecture.config("nano")).model_fields else {}
    model = architecture.build(architecture.config("nano", vocab_size=V, context_length=T, **window))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:  # initial weights are so small that every token is nearly as likely
                parameter.mul_(3)
    return model


def _prompt(B: int = 3, P: int = 5) -> Tensor:
    return torch.randint(V, (B, P), generator=torch.Generator().manual_seed(1))


def _decoded(kind: str, model: nn.Module, prompt: Tensor, new_tokens: int, sampling: Sampling) -> Tensor:
    with decoding(kind) as ran:
        tokens = torch.stack(list(decode_with_cache(model, prompt, new_tokens, sampling)), dim=1)
    assert not ran.reasons
    return tokens


@pytest.mark.parametrize("name", NAMES)
def test_static_steps_give_the_logits_and_tokens_of_eager_ones(name: str) -> None:
    model, prompt = _model(name), _prompt()
    eager, static = Recording(greedy=True), Recording(greedy=True)
    expected = _decoded("eager", model, prompt, T - 4, eager)
    found = _decoded("static", model, prompt, T - 4, static)
    for one, other in zip(static.logits, eager.logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)
    assert torch.equal(found, expected)

    for rule in ({}, {"top_k": 5}, {"top_p": 0.8}):
        generators = [torch.Generator().manual_seed(2) for _ in range(2)]
        tokens = [
            _decoded(kind, model, prompt, 20, Sampling(generator=generator, **rule))
            for kind, generator in zip(("eager", "static"), generators, strict=True)
        ]
        assert torch.equal(*tokens)
        assert torch.equal(*(generator.get_state() for generator in generators)), "the caller's goes on as after eager"


def test_sequences_end_as_in_eager_decoding() -> None:
    model, prompt = _model("gpt1"), _prompt()
    free = _decoded("eager", model, prompt, 20, Sampling(greedy=True))
    for eos in free[:, 4].tolist():
        expected = _decoded("eager", model, prompt, 20, Sampling(greedy=True, eos=eos))
        assert torch.equal(_decoded("static", model, prompt, 20, Sampling(greedy=True, eos=eos)), expected)


def test_decodings_at_the_same_time_and_later_ones_leave_tokens_as_they_were() -> None:
    model, greedy = _model("gpt1"), Sampling(greedy=True)
    prompts = [_prompt(), _prompt().flip(1)]
    expected = [_decoded("eager", model, prompt, 20, greedy) for prompt in prompts]
    with decoding("static"):
        rounds = []
        for _ in range(2):  # the second takes what the first has left
            both = [decode_with_cache(model, prompt, 20, greedy) for prompt in prompts]
            rounds.append(list(zip(*both, strict=True)))
        list(islice(decode_with_cache(model, prompts[0], 20, greedy), 3))  # and one that is not read to its end
    for tokens in rounds:
        for one, other in zip(zip(*tokens, strict=True), expected, strict=True):
            assert torch.equal(torch.stack(one, dim=1), other)


def test_what_takes_no_static_steps_decodes_eagerly_and_says_why() -> None:
    """A position from the host, a cache without static steps, a window that slides, no cache, no GPU."""

    class FrozenPosition(nn.Module):
        """Takes its position from the host, where a graph would repeat the one at which it was captured."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config, self.new_cache = inner, inner.config, inner.new_cache

        def extend(self, tokens: Tensor, cache: Any) -> Tensor:
            shift = self.inner.position_embedding.weight[cache.length]
            self.inner.embedding.weight.data += shift
            logits = self.inner.extend(tokens, cache)
            self.inner.embedding.weight.data -= shift
            return logits

    class ListCache:
        length = 0

        def tensors(self) -> list[Tensor]:
            return []

    model, prompt, greedy = _model("gpt1"), _prompt(), Sampling(greedy=True)
    listed = _model("gpt1")
    listed.new_cache = lambda batch_size, capacity: ListCache()
    for decoder, kind, model_, new_tokens, reason in (
        (decode_with_cache, "static", FrozenPosition(model), 20, "static steps give other logits"),
        (decode_with_cache, "static", model, T, "window slides"),
        (decode_without_cache, "static", model, 3, "without a cache"),
        (decode_with_cache, "graph", model, 3, "need a GPU"),
    ):
        expected = torch.stack(list(decoder(model_, prompt, new_tokens, greedy)))
        with decoding(kind) as ran:
            found = torch.stack(list(decoder(model_, prompt, new_tokens, greedy)))
        assert ran.kinds == {"eager"}
        assert any(reason in given for given in ran.reasons), ran.reasons
        assert torch.equal(found, expected)
    with decoding("static") as ran:
        decode_with_cache(listed, prompt, 3, greedy)
    assert any("ListCache, has no static steps" in given for given in ran.reasons)
