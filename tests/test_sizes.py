"""Sizes are the published ones: parameters a token uses, with and without those of vocabulary and context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench.errors import DeviceError, UsageError
from archbench.measure.flops import count_flops
from archbench.measure.sizes import active_parameters, head_names, non_embedding_active_parameters, size_of
from archbench.nn import SparseExperts
from parity import parameter_count

V, C, T = 50, 16, 24


def on_meta(name: str, preset: str = "nano", **overrides: Any) -> nn.Module:
    architecture = archbench.load(name)
    with torch.device("meta"):
        return architecture.build(architecture.config(preset, **overrides))


def test_mixtral_has_46_7_billion_parameters_of_which_a_token_uses_12_9_billion() -> None:
    # Mistral AI's announcement; 47B and 13B in Jiang et al. 2024, arXiv:2401.04088, section 1.
    model = on_meta("mixtral", "paper")
    total = parameter_count(model)
    assert (round(total / 1e9, 1), round(active_parameters(model) / 1e9, 1)) == (46.7, 12.9)


@pytest.mark.parametrize(
    ("n_layer", "d_model", "published"),
    [(6, 512, 18_915_328), (12, 768, 85_056_000), (24, 1024, 302_311_424), (24, 2048, 1_208_602_624)],
    ids=["70M", "160M", "410M", "1.4B"],
)
def test_non_embedding_parameters_are_those_published_for_pythia(n_layer: int, d_model: int, published: int) -> None:
    # Biderman et al. 2023, arXiv:2304.01373, table 1: GPT-2's blocks, at GPT-2 small's shape for 160M.
    model = on_meta("gpt2", "paper", n_layer=n_layer, d_model=d_model, d_ff=4 * d_model, n_head=8)
    assert non_embedding_active_parameters(model) == published


@pytest.mark.parametrize("name", [entry.name for entry in archbench.available() if entry.package == "archbench"])
def test_neither_vocabulary_nor_context_makes_a_model_larger(name: str) -> None:
    sizes = {
        non_embedding_active_parameters(on_meta(name, vocab_size=V, context_length=T))
        for V, T in ((1024, 128), (50_000, 4096))
    }
    assert len(sizes) == 1
    assert sizes.pop() > 500_000


class Model(nn.Module):
    """Embedding, a feed-forward layer, and a head of one of several kinds."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.kind = head
        self.head = nn.Linear(C, V) if head == "linear" else None  # registered, and so listed, before the others
        self.embedding = nn.Embedding(V, C)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(C, V), nn.GELU(), nn.Linear(V, C))])  # of width V
        if head == "two":
            self.one, self.two = nn.Linear(C, V), nn.Linear(C, V)
        if head == "tied":
            self.tied = nn.Linear(C, V, bias=False)
            self.tied.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.blocks[0](x)
        if self.kind == "two":
            return torch.logaddexp(self.one(x), self.two(x))
        if self.kind == "function":
            return F.linear(x, self.embedding.weight)
        head = self.tied if self.kind == "tied" else self.head
        assert head is not None
        return torch.tanh(head(x))


FEED_FORWARD = 2 * C * V + C + V


@pytest.mark.parametrize("head", ["linear", "two", "tied", "function"])
def test_a_head_that_is_not_offered_is_found_where_the_logits_come_from(head: str) -> None:
    with torch.device("meta"):
        model = Model(head)
    assert non_embedding_active_parameters(model) == FEED_FORWARD
    assert not any(module._forward_hooks for module in model.modules())
    assert non_embedding_active_parameters(Model(head), head_names(model)) == FEED_FORWARD


def test_a_head_that_is_not_offered_can_be_found_on_the_meta_device_only() -> None:
    with pytest.raises(DeviceError):
        non_embedding_active_parameters(Model("linear"))


class Offered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, C)
        self.mix = nn.Linear(C, C)
        self.weight, self.bias = nn.Parameter(torch.zeros(V, C)), nn.Parameter(torch.zeros(V))

    def forward(self, tokens: Tensor, *, logits: bool = True) -> Tensor:
        hidden = self.hidden(tokens)
        return self.head(hidden) if logits else hidden

    def hidden(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.embedding(tokens))
        return mixed

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)

    def head_parameters(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias


def test_a_head_that_is_offered_is_left_out_with_its_bias() -> None:
    assert non_embedding_active_parameters(Offered()) == C * C + C


def test_experts_say_of_themselves_what_a_token_leaves_without_a_gradient() -> None:
    torch.manual_seed(0)
    module = SparseExperts(C, 12, 5, 2, F.silu)
    module(torch.randn(1, C))[0].sum().backward()
    unused = sum(
        expert.numel()
        for weight in (module.gate_up, module.down)
        for expert, gradient in zip(weight, weight.grad, strict=True)  # type: ignore[arg-type]
        if not gradient.any()
    )
    assert module.inactive_parameters() == unused > 0


class Says(nn.Module):
    """A module of 100 parameters, which says that some of them are inactive."""

    def __init__(self, inactive: object, *children: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(100))
        self.parts = nn.ModuleList(children)
        self.inactive = inactive

    def inactive_parameters(self) -> object:
        return self.inactive


def test_any_module_may_say_what_is_inactive_and_the_outermost_speaks_for_all_inside() -> None:
    shared = Says(30)
    assert active_parameters(nn.ModuleList([Says(10), Says(20)])) == 170
    assert active_parameters(nn.ModuleList([shared, shared])) == 70
    assert active_parameters(Says(60, Says(50))) == 140


@pytest.mark.parametrize("inactive", [101, -1, 0.5, None])
def test_more_inactive_parameters_than_there_are_is_an_error_that_names_the_module(inactive: object) -> None:
    with pytest.raises(UsageError, match=r"Says\.inactive_parameters.*of 100 parameters"):
        active_parameters(nn.Sequential(Says(inactive)))


def test_a_size_holds_the_costs_that_are_counted_elsewhere() -> None:
    model = on_meta("mistral", window=32)
    size, flops = size_of(model, 128), count_flops(model, 1, 128)
    assert size.parameters == parameter_count(model)
    assert size.active_parameters == size.parameters == size.non_embedding_active_parameters + 2 * 1024 * 192
    assert (size.forward_flops_per_token, size.training_flops_per_token) == (
        flops.forward_per_token,
        flops.training_per_token,
    )
    assert size.state_bytes == 2 * 2 * 2 * 32 * 32 * 4  # keys and values, layers, G, D, W, bytes of a float32


def test_a_model_that_decodes_without_a_cache_has_no_state() -> None:
    with torch.device("meta"):
        model = Model("linear")
    assert size_of(model, T).state_bytes is None
