"""Float8 products: the fast path is the readable one, both follow their definition, and who asks gets them or an error.

``torch._scaled_mm`` runs on CPUs too, by other code than on a GPU: shown here is that archbench calls it rightly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from archbench_plugins.gpt1 import GPT1
from torch import Tensor, nn

from archbench import linear_cross_entropy
from archbench.errors import DeviceError, PluginError
from archbench.kernels import float8_head, float8_linear, linear
from archbench.kernels.float8_linear import (
    E4M3,
    E5M2,
    Float8Products,
    Operand,
    Which,
    product,
    quantise,
    reference_product,
    scaled_product,
    why_not_float8,
)  # fmt: skip
from archbench.kernels.product_choice import record_products
from archbench.plugin.registry import load
from archbench.training.state import TrainState
from archbench.training.steps import next_token_step
from training_setup import model_config, new_state, recipe, sampler

CPU = torch.device("cpu")
SIZES = [(64, 32, 48), (37, 24, 101), (1, 5, 3)]
"""M, K and N: multiples of 16, which the fast path demands, and others, which are filled up."""

Product = Callable[..., Tensor]


def by(monkeypatch: pytest.MonkeyPatch, way: Product) -> None:
    """All products in float8 are computed that way."""
    chosen = way if way is scaled_product else lambda *operands, inexact=False: way(*operands)
    monkeypatch.setattr(float8_linear, "product", chosen)
    monkeypatch.setattr(float8_head, "product", chosen)


def operands(M: int, K: int, N: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias, random, of sizes that differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((M, K), (N, K), (N,)))
    return (30 * x).to(dtype).requires_grad_(), (0.02 * weight).requires_grad_(), bias.requires_grad_()


def values(layer: Callable[..., Tensor], given: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, and what a random gradient of it gives each operand."""
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(*given)
    upstream = 1e-4 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, given, upstream)]


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x to the nearest float8, with the scale found by logarithms: the definition."""
    most = x.abs().max().float().log2().floor()
    scale = 2.0 ** (most - {E4M3: 7, E5M2: 14}[dtype])
    return (x.float() / scale).to(dtype).float() * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients_by_scaled_mm_are_those_of_the_reference(
    sizes: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for way in (scaled_product, reference_product):
        by(monkeypatch, way)
        found[way] = values(float8_linear.float8_linear, operands(*sizes, dtype))
    for fast, readable in zip(found[scaled_product], found[reference_product], strict=True):
        assert (fast.dtype, fast.shape) == (readable.dtype, readable.shape)
        # Products of 8-bit numbers are exact, and sums differ in their order: by a rounding of float32, or of bfloat16.
        rtol = 1e-6 if readable.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(fast, readable, rtol=rtol, atol=1e-6 * float(readable.abs().max()))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients_are_those_of_rounded_operands(sizes: tuple[int, int, int]) -> None:
    x, weight, bias = operands(*sizes)
    y, for_x, for_weight, for_bias = values(float8_linear.float8_linear, (x, weight, bias))
    upstream = 1e-4 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    x8, w8, e8 = rounded(x.detach(), E4M3), rounded(weight.detach(), E4M3), rounded(upstream, E5M2)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), x8 @ w8.t() + bias.detach().bfloat16(), rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(for_x, e8 @ w8, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(for_weight, e8.t() @ x8, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(for_bias, upstream.float().sum(0), rtol=1e-5, atol=1e-7)


def test_what_is_rounded_to_float8_is_near_what_is_not() -> None:
    """e4m3 has 3 bits of mantissa, an error of 2^-4 at most and a third of it on average; sums of 64 keep the ratio."""
    given = operands(128, 64, 96)
    for found, exact in zip(values(float8_linear.float8_linear, given), values(F.linear, given), strict=True):
        assert float((found - exact).norm() / exact.norm()) < 0.08


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("largest", [2.0**-70, 1e-12, 0.999, 1.0, 447.0, 3e38])
def test_no_number_overflows_and_the_largest_loses_no_bit_of_range(dtype: torch.dtype, largest: float) -> None:
    x = largest * torch.tensor([[1.0, -1.0, 0.5, 1e-3]])
    q = quantise(x, dtype)
    assert q.values.float().isfinite().all()
    assert q.scale.frexp().mantissa == 0.5, "a power of two"
    if largest > float8_linear.LEAST:
        assert float(q.values.float().abs().max()) >= {E4M3: 2.0**7, E5M2: 2.0**14}[dtype]
    back = (q.values.float() * q.scale)[:1, :3]
    torch.testing.assert_close(back, x[:, :3], rtol=0.07 if dtype == E4M3 else 0.13, atol=0)
    assert torch.equal(q.values.t().float(), q.transposed.float())


def test_zeros_stay_zeros_and_what_is_not_finite_is_seen() -> None:
    assert quantise(torch.zeros(16, 16), E4M3).values.float().eq(0).all()
    x, weight, bias = operands(16, 16, 16)
    for bad in (torch.nan, torch.inf):
        x.data[3, 5] = bad
        assert values(float8_linear.float8_linear, (x, weight, bias))[0].isnan().all(), "a divergence must show"


def test_a_rounding_does_not_depend_on_the_scale() -> None:
    """So chunks of rows, and errors that a constant divides, are rounded as the whole would be."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    for scale in (2.0**-6, 2.0**-3):
        q = quantise(x, E4M3, torch.tensor(scale))
        large = x.abs() > 2.0**-8
        assert torch.equal((q.values.float() * scale)[large], rounded(x, E4M3)[large])


# --- the head's loss


def head_inputs(n: int = 70, V: int = 101) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias and targets, of which every fifth is ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, generator=generator) for shape in ((n, 24), (V, 24), (V,)))
    targets = torch.randint(V, (n,), generator=generator)
    targets[4::5] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


@pytest.fixture
def head_in_float8() -> Callable[[Tensor], Any]:
    """A context in which the products of that weight are a head's, in float8."""

    class Head(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = weight

        def head_parameters(self) -> tuple[Tensor, None]:
            return self.weight, None

    return lambda weight: Float8Products("head", Head(weight), CPU, torch.bfloat16).used()


def head_values(
    loss: Callable[..., Tensor], given: tuple[Tensor, ...], context: Callable[[Tensor], Any], count: int = 1
) -> list[Tensor]:
    """The loss and its gradients, all divided by ``count``."""
    hidden, weight, bias, targets = given
    with torch.autocast("cpu", torch.bfloat16), context(weight):
        result = loss(hidden, weight, targets, bias=bias)
    return [one.detach() / count for one in (result, *torch.autograd.grad(result, [hidden, weight, bias]))]


def all_logits(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor) -> Tensor:
    """The readable twin. The sum, since gradients of the mean would be rounded otherwise: 56 is no power of two."""
    return F.cross_entropy(linear(hidden, weight, bias).float(), targets, reduction="sum")


@pytest.mark.parametrize("way", [scaled_product, reference_product])
@pytest.mark.parametrize("chunk", [1, 16, 33, None])
def test_the_chunked_loss_is_that_of_all_logits_in_float8(
    way: Product, chunk: int | None, monkeypatch: pytest.MonkeyPatch, head_in_float8: Callable[[Tensor], Any]
) -> None:
    by(monkeypatch, way)
    given = head_inputs()

    def chunked(*args: Any, **named: Any) -> Tensor:
        return linear_cross_entropy(*args, chunk=chunk, **named)

    with record_products() as ran:
        found = head_values(chunked, given, head_in_float8)
        wanted = head_values(all_logits, given, head_in_float8, int((given[3] != -100).sum()))
    assert ran == {"float8-head-emulated"}
    for ours, theirs in zip(found, wanted, strict=True):
        # The logits are rounded to bfloat16: where sums in another order fall on the other side, by 2^-8 of themselves.
        assert float((ours - theirs).norm() / theirs.norm()) < 3e-3
    assert found[1][4::5].eq(0).all(), "of ignored targets"


def test_the_loss_in_float8_is_near_that_in_bfloat16(head_in_float8: Callable[[Tensor], Any]) -> None:
    from contextlib import nullcontext

    given = head_inputs()
    found = head_values(linear_cross_entropy, given, head_in_float8)
    exact = head_values(linear_cross_entropy, given, lambda weight: nullcontext())
    assert found[0] != exact[0]
    assert float(found[0]) == pytest.approx(float(exact[0]), rel=0.02)
    for ours, theirs in zip(found[1:], exact[1:], strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.15


# --- who asks


def trained(which: Which, name: str = "gpt1") -> set[str]:
    """What multiplies in an update."""
    architecture = load(name)
    torch.manual_seed(0)
    model = GPT1(model_config()) if name == "gpt1" else architecture.build(architecture.info.presets["nano"])
    state = TrainState.create(model, recipe(), dtype="bfloat16", float8=which)
    with record_products() as ran:
        architecture.train_step(state, sampler().batch(0))
    return ran


@pytest.mark.parametrize("name", ["gpt1", "hybrid", "mixtral"])
def test_rows_say_what_was_in_float8(name: str) -> None:
    """Hybrid's head is capped, so its logits are held; mixtral has a step of its own, and routers."""
    assert trained("head", name) == {"float8-head-emulated"}
    assert trained("all", name) == {"float8-head-emulated", "float8-layers-emulated"}


def test_only_what_is_asked_for_is_in_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-1 has four linear layers a block, each with three products; mixtral's routers are not among them."""
    calls: list[tuple[int, int]] = []

    def counted(left: Operand, right: Operand, *others: Any, **named: Any) -> Tensor:
        calls.append((left.values.shape[0], right.values.shape[0]))
        return product(left, right, *others, **named)

    monkeypatch.setattr(float8_linear, "product", counted)
    monkeypatch.setattr(float8_head, "product", counted)
    for which, expected in (("none", 0), ("head", 3), ("all", 3 + 2 * 4 * 3)):
        calls.clear()
        state = new_state(recipe(), dtype="bfloat16", float8=which)
        next_token_step(state, sampler().batch(0))
        assert len(calls) == expected
    architecture = load("mixtral")
    config = architecture.info.presets["nano"]
    calls.clear()
    state = TrainState.create(architecture.build(config), recipe(), dtype="bfloat16", float8="all")
    architecture.train_step(state, sampler().batch(0))
    assert len(calls) == 3 * (1 + 2 * config.n_layer), "the head, and attention's two: experts are in bfloat16"  # type: ignore[attr-defined]


def test_nothing_is_in_float8_outside_training() -> None:
    state = new_state(recipe(), dtype="bfloat16", float8="all")
    next_token_step(state, sampler().batch(0))
    tokens = sampler().batch(0).inputs
    with record_products() as ran, torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            state.module(tokens)
        state.module(tokens)
    assert not {one for one in ran if one.startswith("float8")}


def test_gradients_of_parameters_are_float32s_and_not_rounded_to_bfloat16() -> None:
    state = new_state(recipe(grad_clip=None, optimizer="sgd"), dtype="bfloat16", float8="all")
    seen: list[Tensor] = []
    weight = state.module.blocks[0].attention.qkv.weight  # type: ignore[union-attr, index]
    weight.register_hook(seen.append)
    next_token_step(state, sampler().batch(0))
    assert seen[0].dtype == torch.float32
    assert not torch.equal(seen[0], seen[0].bfloat16().float())


class Plain(nn.Module):
    """A model of torch's own layers, which know no float8."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(61, 16), nn.Linear(16, 61)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(tokens))
        return logits


@pytest.mark.parametrize("which", ["head", "all"])
def test_who_asks_and_gets_none_is_told(which: Which) -> None:
    state = TrainState.create(Plain(), recipe(), dtype="bfloat16", float8=which)
    with pytest.raises(PluginError, match="archbench"):
        next_token_step(state, sampler().batch(0))


@pytest.mark.parametrize("dtype", ["float32"])
def test_another_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(DeviceError, match="bfloat16"):
        new_state(recipe(), dtype=dtype, float8="head")


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 6), True), ((8, 9), False), ((9, 0), False)])
def test_a_gpu_that_multiplies_no_float8_is_refused(
    capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    reason = why_not_float8(torch.device("cuda:0"), torch.bfloat16)
    assert (reason is not None) == refused
    if reason is not None:
        assert "NVIDIA A100" in reason[0]
        assert "8.9" in reason[0]
