"""Steps of static shapes decode as eager ones do, asked one by one and replayed from a recording."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import archbench
from archbench import Sampling, decode_with_cache, decode_without_cache
from archbench.inference.decoding_kind import decoding
from archbench.kernels import attention_backend, record_attention
from archbench.kernels.product_choice import choosable, choose_products, record_products
from archbench.nn import cache as caches

V, T = 64, 48
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
DEFAULT = ("gpt1", "mixtral", "hybrid")  # learned positions; experts; recurrence, a ring of keys and rotary positions
BUILT_IN = list(PROJECT["project"]["entry-points"]["archbench"])
NAMES = [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in BUILT_IN]
HOST_DECIDES = {"mixtral": "reads values on the host"}
"""Experts are chosen there on CPUs."""


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
    """A position from the host, a cache without static steps, a window that slides, no cache."""

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
        (decode_without_cache, "graph", model, 3, "without a cache"),
    ):
        expected = torch.stack(list(decoder(model_, prompt, new_tokens, greedy)))
        with decoding(kind) as ran:
            found = torch.stack(list(decoder(model_, prompt, new_tokens, greedy)))
        assert ran.kinds == {"eager"}
        assert any(reason in given for given in ran.reasons), ran.reasons
        assert torch.equal(found, expected)
    for kind in ("static", "graph"):
        with decoding(kind) as ran:
            decode_with_cache(listed, prompt, 3, greedy)
        assert any("ListCache, has no static steps" in given for given in ran.reasons)


@pytest.mark.parametrize("name", BUILT_IN)
def test_recorded_steps_give_the_tokens_of_eager_ones(name: str) -> None:
    model, prompt = _model(name), _prompt()
    for rule in ({"greedy": True}, {}, {"top_k": 5}, {"top_p": 0.8}, {"greedy": True, "eos": 7}):
        generators = [torch.Generator().manual_seed(2) for _ in range(2)]
        tokens = []
        for kind, generator in zip(("eager", "graph"), generators, strict=True):
            with decoding(kind) as ran:
                sampling = Sampling(generator=generator, **rule)  # type: ignore[arg-type]
                tokens.append(torch.stack(list(decode_with_cache(model, prompt, T - 4, sampling))))
        assert torch.equal(*tokens)
        assert torch.equal(*(generator.get_state() for generator in generators))
        if name in HOST_DECIDES:
            assert ran.kinds == {"eager"}
            assert HOST_DECIDES[name] in ran.reasons.pop()
        else:
            assert ran.kinds == {"graph"}


def test_a_recording_follows_its_weights_and_says_what_it_ran() -> None:
    """Weights changed in place are read, moved ones make a new recording, as another backend and choice of products."""
    model, greedy = _model("llama"), Sampling(greedy=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)

    def both() -> Tensor:
        expected = _decoded("eager", model, _prompt(B=4), 20, greedy)
        assert torch.equal(_decoded("graph", model, _prompt(B=4), 20, greedy), expected)
        return expected

    seen = [both()]
    with torch.no_grad():
        model.embedding.weight.copy_(model.embedding.weight.flip(0))
    seen.append(both())
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(0).contiguous()
    seen.append(both())
    assert not any(torch.equal(one, other) for one, other in pairwise(seen))
    with attention_backend("reference"), record_attention() as attended:
        both()
    assert attended == {"reference"}

    large = archbench.load("gpt1")
    model = large.build(large.config("nano", vocab_size=V, context_length=T, d_model=516, d_ff=516))
    for library in ("torch", "onednn", "packed"):

        def choose(case: Any, race: Any, library: Any = library) -> Any:
            return library if library != "packed" or case.direction == "step" else "torch"

        choose_products(choose, packing=2**30 if library == "packed" else 0)
        try:
            for _ in range(2):  # the second only replays
                with record_products() as multiplied:
                    both()
                assert library in multiplied or not choosable(torch.zeros(4, 516), model.blocks[0].attention.qkv.weight)
            with torch.no_grad():
                model.blocks[0].attention.qkv.weight.mul_(2)  # a packed copy is of these values
            both()
        finally:
            choose_products(None)


def test_recorded_decodings_at_the_same_time_have_a_step_each() -> None:
    model, greedy = _model("rwkv7"), Sampling(greedy=True)
    prompts = [_prompt(), _prompt().flip(1)]
    expected = [_decoded("eager", model, prompt, 20, greedy) for prompt in prompts]
    with decoding("graph"):
        for _ in range(2):
            both = zip(*(decode_with_cache(model, prompt, 20, greedy) for prompt in prompts), strict=True)
            for one, other in zip(zip(*both, strict=True), expected, strict=True):
                assert torch.equal(torch.stack(one, dim=1), other)


class Wrapped(nn.Module):
    """A GPT-1 that adds to its logits (B, V) what ``change`` makes of them."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.inner, self.change = _model("gpt1"), change
        self.config = self.inner.config

    def new_cache(self, batch_size: int, capacity: int) -> Any:
        return self.inner.new_cache(batch_size, capacity)

    def extend(self, tokens: Tensor, cache: Any) -> Tensor:
        logits: Tensor = self.inner.extend(tokens, cache)
        return logits + self.change(logits)


class Rebinding(Wrapped):
    """Keeps the sum of all embeddings in its cache, in a new tensor each time: a replay would read the first one."""

    class Cache(caches.KVCache):
        total = torch.zeros(1)

        def tensors(self) -> list[Tensor]:
            return [*super().tensors(), self.total]

        def clear(self) -> None:
            super().clear()
            self.total = torch.zeros(1)

    def new_cache(self, batch_size: int, capacity: int) -> Any:
        cache = super().new_cache(batch_size, capacity)
        cache.__class__ = self.Cache
        return cache

    def extend(self, tokens: Tensor, cache: Any) -> Tensor:
        cache.total = cache.total + self.inner.embedding(tokens).sum(1)  # (B, C)
        logits: Tensor = self.inner.extend(tokens, cache)
        return logits + cache.total[:, :V].cos()


KEPT_ELSEWHERE = torch.arange(V) / V


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Wrapped(lambda logits: float(logits.max()) * torch.ones(V)), "reads values on the host"),
        (lambda: Wrapped(lambda logits: torch.tensor(logits.tolist()).cos()), "reads values on the host"),
        (lambda: Wrapped(lambda logits: torch.from_numpy(np.cos(logits.numpy()))), "reads values on the host"),
        (lambda: Wrapped(lambda logits: logits[logits > 0].sum() * torch.ones(V)), "depends on values"),
        (lambda: Wrapped(lambda logits: logits.nonzero()[0].float() @ torch.ones(2, V)), "depends on values"),
        (lambda: Wrapped(lambda logits: KEPT_ELSEWHERE), "is no parameter, no buffer"),
        (lambda: Rebinding(None), "its recorded step gives other logits"),
    ],
)
def test_what_a_recording_cannot_repeat_decodes_eagerly_and_says_why(make: Any, reason: str) -> None:
    model = make()
    expected = _decoded("eager", model, _prompt(), 9, Sampling(greedy=True))
    with decoding("graph") as ran:
        found = torch.stack(list(decode_with_cache(model, _prompt(), 9, Sampling(greedy=True))), dim=1)
    assert ran.kinds == {"eager"}
    assert reason in " ".join(ran.reasons)
    assert torch.equal(found, expected)


def test_what_watches_a_model_is_not_left_out() -> None:
    """Hooks, a sampling of one's own, a dispatch mode, autocast: eager, until they are gone."""

    class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    model, greedy = _model("gpt1"), Sampling(greedy=True)

    def reasons(sampling: Sampling = greedy) -> str:
        with decoding("graph") as ran:
            list(decode_with_cache(model, _prompt(), 9, sampling))
        assert ran.kinds == ({"eager"} if ran.reasons else {"graph"})
        return " ".join(ran.reasons)

    assert not reasons()
    seen: list[Tensor] = []
    hook = model.blocks[1].attention.register_forward_hook(lambda module, given, out: seen.append(out))
    assert "a hook is registered on blocks.1.attention" in reasons()
    assert len(seen) == 9
    hook.remove()
    everywhere = nn.modules.module.register_module_forward_pre_hook(lambda module, given: None)
    assert "a hook is registered on GPT1" in reasons()
    everywhere.remove()
    assert "a Recording, may run code" in reasons(Recording(greedy=True))
    with Watching() as watching:  # type: ignore[no-untyped-call]
        assert "a dispatch mode is on" in reasons()
    assert watching.calls
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast is on" in reasons()
    assert not reasons()
