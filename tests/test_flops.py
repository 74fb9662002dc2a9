"""Counted FLOPs, layers and cache bytes equal the closed forms, and what cannot be counted is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import archbench
from archbench.errors import DeviceError
from archbench.kernels import causal_attention
from archbench.kernels.triton_guard import flop_counter
from archbench.measure.flops import (
    cache_bytes,
    cache_bytes_per_token,
    count_flops,
    layer_table,
    measured_cache_bytes,
    measured_cache_bytes_per_token,
)
from archbench.measure.flops import on_meta as copy_on_meta
from archbench.measure.uncounted_operators import MAY_BE_PRODUCTS

V, C, H, L, T = 50, 16, 4, 3, 24


class Block(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)
        self.up = nn.Linear(C, 4 * C)
        self.down = nn.Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, H, C // H)).permute(2, 0, 3, 1, 4)  # 3 × (B, H, T, D)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True) if self.fused else causal_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Tiny(nn.Module):
    def __init__(self, *, tied: bool = True, fused: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, C)
        one = Block(fused) if shared else None
        self.blocks = nn.ModuleList(one or Block(fused) for _ in range(L))
        self.head = nn.Linear(C, V, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


def on_meta(**options: bool) -> Tiny:
    with torch.device("meta"):
        return Tiny(**options)


# Forward: 2 FLOPs for each of the 12 C² weights of a block, 2 · 2 T C for its attention, 2 V C for the head.
FORWARD = L * (2 * 12 * C * C + 4 * T * C) + 2 * V * C


@pytest.mark.parametrize("fused", [False, True], ids=["archbench's attention", "torch's attention"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_transformers_flops_equal_the_closed_form(fused: bool, batch_size: int) -> None:
    count = count_flops(on_meta(fused=fused), batch_size, T)
    assert count.forward_per_token == FORWARD
    assert count.training_per_token == 3 * FORWARD


def test_shared_layers_cost_flops_each_time_they_run() -> None:
    assert count_flops(on_meta(shared=True), 1, T).forward_per_token == FORWARD


def test_gpt1s_paper_size_costs_what_the_formula_says() -> None:
    architecture = archbench.load("gpt1")
    config = architecture.config("paper")
    with torch.device("meta"):
        model = architecture.build(config)
    # 12 layers of 12 · 768² weights, a head of 40,478 · 768, attention over 512 positions.
    forward = 12 * (2 * 12 * 768**2 + 4 * 512 * 768) + 2 * 40478 * 768
    count = count_flops(model, 1, 512)
    assert (count.forward_per_token, count.training_per_token) == (forward, 3 * forward)
    assert sum(row.parameters for row in layer_table(model)) == 116_534_784
    assert cache_bytes_per_token(model, 1, 512) == 2 * 12 * 768 * 4


def test_counting_leaves_the_model_as_it_was() -> None:
    model = on_meta()
    model.blocks[0].eval()
    count_flops(model, 1, T)
    assert [module.training for module in (model, model.blocks[0], model.blocks[1])] == [True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_layer_tables_columns_add_up_to_the_model() -> None:
    rows = {row.path: row for row in layer_table(on_meta(), context_length=T)}
    block = 12 * C * C + 9 * C  # weights, and biases of 3 C + C + 4 C + C
    assert sum(row.parameters for row in rows.values()) == V * C + L * block
    assert sum(row.forward_flops for row in rows.values()) == FORWARD * T
    assert (rows["embedding"].parameters, rows["head"].parameters) == (V * C, 0), "a tied weight counts once"
    assert rows["blocks.1"].forward_flops == 4 * T * C * T, "attention belongs to the block that calls it"
    assert rows["blocks.1.up"].output_shape == (1, T, 4 * C)
    assert rows["head"].output_shape == (1, T, V)


def test_untied_weights_count_twice() -> None:
    rows = layer_table(on_meta(tied=False), context_length=T)
    assert sum(row.parameters for row in rows) - sum(row.parameters for row in layer_table(on_meta(), 1, T)) == V * C


def test_a_model_that_is_not_on_meta_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"Tiny: embedding\.weight is on cpu"):
        count_flops(Tiny(), 1, T)


def test_a_model_that_looks_at_its_tokens_is_refused_with_a_next_step() -> None:
    class Peeking(Tiny):
        def forward(self, tokens: Tensor) -> Tensor:
            assert int(tokens.max()) > V
            return super().forward(tokens)

    with torch.device("meta"):
        model = Peeking()
    with pytest.raises(DeviceError, match=r"Peeking: .*FLOPs.*tokens' values"):
        count_flops(model, 1, T)


class Cache:
    def __init__(self, *tensors: Tensor) -> None:
        self.length = 0
        self._tensors = list(tensors)

    def tensors(self) -> list[Tensor]:
        return self._tensors


class WithCache(Tiny):
    """Keys and values of every position in bfloat16, and a float32 state of fixed size."""

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        device = self.embedding.weight.device
        pages = torch.empty(L, 2, batch_size, capacity, C, dtype=torch.bfloat16, device=device)
        return Cache(pages[:, 0], pages[:, 1], torch.empty(batch_size, 10, device=device))

    def extend(self, tokens: Tensor, cache: Cache) -> Tensor:
        raise NotImplementedError


def test_cache_bytes_are_computed_on_meta_and_agree_with_what_is_allocated() -> None:
    with torch.device("meta"):
        model = WithCache()
    assert cache_bytes(model, 3, 100) == 3 * (L * 2 * 100 * C * 2 + 10 * 4)
    assert measured_cache_bytes(WithCache(), 3, 100) == cache_bytes(model, 3, 100)


def test_cache_bytes_per_token_are_the_slope_without_the_fixed_state() -> None:
    with torch.device("meta"):
        model = WithCache()
    assert cache_bytes_per_token(model, 3, 100) == L * 2 * C * 2
    assert measured_cache_bytes_per_token(WithCache(), 3, 100) == L * 2 * C * 2


def test_a_cache_that_is_a_view_of_something_larger_is_weighed_whole() -> None:
    class Wasteful(WithCache):
        def new_cache(self, batch_size: int, capacity: int) -> Cache:
            return Cache(torch.empty(batch_size, 2 * capacity, C)[:, :capacity])

    model = Wasteful()
    assert measured_cache_bytes(model, 1, 100) == 2 * 100 * C * 4
    assert cache_bytes(model, 1, 100) == 100 * C * 4


def test_a_model_without_a_cache_has_no_cache_bytes() -> None:
    assert cache_bytes(on_meta(), 1, T) is None
    assert cache_bytes_per_token(on_meta(), 1, T) is None
    assert measured_cache_bytes(Tiny(), 1, T) is None
    assert measured_cache_bytes_per_token(Tiny(), 1, T) is None


class WithScan(Tiny):
    """A scan over the positions that torch counts as nothing, declared at 5 FLOPs a number."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).cumsum(1)

    def uncounted_flops(self, batch_size: int, context_length: int) -> dict[str, float]:
        return {"aten::cumsum": 5.0 * batch_size * context_length * V}


def test_declared_flops_are_added_once_to_forward_and_three_times_to_training() -> None:
    with torch.device("meta"):
        model = WithScan()
    count = count_flops(model, 2, T)
    assert count.forward_per_token == FORWARD + 5 * V
    assert count.training_per_token == 3 * (FORWARD + 5 * V)
    rows = {row.path: row for row in layer_table(model, 2, T)}
    assert rows[""].forward_flops == 5 * V * 2 * T, "declared FLOPs are the model's own"
    assert sum(row.forward_flops for row in rows.values()) == (FORWARD + 5 * V) * 2 * T


def test_every_operator_that_torch_has_a_formula_for_would_be_missed_without_it() -> None:
    """The names that say 'product', held against the list of products that torch keeps itself."""
    formulas = [op for op in flop_counter().flop_registry if isinstance(op, torch._ops.OpOverloadPacket)]
    own = [str(op).removeprefix("aten.") for op in formulas if str(op).startswith("aten.")]
    assert len(own) > 15
    assert [name for name in own if not MAY_BE_PRODUCTS.search(name)] == []


def test_a_copy_on_meta_keeps_ties_and_modes_and_holds_no_values() -> None:
    model = Tiny()
    model.blocks.eval()
    copied = copy_on_meta(model)
    assert copied.head.weight is copied.embedding.weight
    assert {parameter.device.type for parameter in copied.parameters()} == {"meta"}
    assert (copied.training, copied.blocks.training) == (True, False)
    assert model.head.weight.device.type == "cpu"
    assert count_flops(copied, 1, T) == count_flops(on_meta(), 1, T)
