"""Decoding steps of a few rows multiply a packed copy of a weight: F.linear's values, of the weight as it is now."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench.config import RunConfig
from archbench.errors import UsageError
from archbench.inference.decoding_kind import decoding
from archbench.kernels import linear, linear_cross_entropy, packed_product, product_choice
from archbench.kernels.packed_product import decoding_step
from archbench.kernels.product_choice import ONEDNN, PACKED, TORCH, Case, Library, choose_products, record_products
from archbench.nn import Linear
from archbench.runs.device import measuring

pytestmark = pytest.mark.skipif(product_choice._cpu_maker() is None, reason="no x86 CPU, or torch without oneDNN")
GREEDY = archbench.Sampling(greedy=True)


def packed_steps(case: Case, race: object) -> Library:
    return PACKED if case.direction == "step" else ONEDNN


@pytest.fixture(autouse=True)
def _packing() -> Iterator[None]:
    choose_products(packed_steps, packing=2**30)
    yield
    choose_products(None)
    packed_product._copies.clear()


def layer(biased: bool = True) -> Linear:
    made = Linear(512, 1031, bias=biased)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def stepped(made: Linear, x: Tensor) -> tuple[Tensor, set[str]]:
    """The layer's output in a decoding step, and the libraries that computed it."""
    with record_products() as ran, torch.inference_mode(), decoding_step():
        return made(x), ran


def same(made: Linear, x: Tensor, found: Tensor) -> None:
    torch.testing.assert_close(found, F.linear(x, made.weight, made.bias), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("biased", [True, False])
def test_a_step_is_linear_by_one_packed_copy_for_any_number_of_rows(biased: bool) -> None:
    torch.manual_seed(0)
    made = layer(biased)
    for M in (4, 5, 8, 33, 63):
        for x in (torch.randn(M, 1, 512), torch.randn(M, 3, 512)[:, -1]):
            found, ran = stepped(made, x)
            assert ran == {PACKED}
            same(made, x, found)
    assert len(packed_product._copies) == 1


def test_changed_values_are_packed_again() -> None:
    torch.manual_seed(0)
    made, x = layer(), torch.randn(8, 512)

    def in_place() -> None:
        with torch.no_grad():
            made.weight.mul_(-2)

    def loaded() -> None:
        made.load_state_dict(layer().state_dict())

    def elsewhere() -> None:
        made.weight.data = torch.randn_like(made.weight)

    for change in (lambda: None, in_place, loaded, elsewhere):
        change()
        found, ran = stepped(made, x)
        assert ran == {PACKED}
        same(made, x, found)
    assert len(packed_product._copies) == 1


def test_nothing_else_is_packed() -> None:
    torch.manual_seed(0)
    made = layer()
    for M in (1, 2, 3, 64):
        assert PACKED not in stepped(made, torch.randn(M, 512))[1]
    x = torch.randn(8, 512)
    with record_products() as ran:
        with torch.inference_mode():
            linear(x, made.weight)  # a prompt, or a text that is scored
            with decoding_step():
                linear(x, made.weight * 2)
        with decoding_step():
            with torch.no_grad():
                linear(x, made.weight)
            linear(x, made.weight).sum().backward()
        with torch.inference_mode(), decoding_step():
            linear(x, nn.Parameter(torch.randn(1031, 512), requires_grad=False))  # it would count no changes
        choose_products(packed_steps)
        stepped(made, x)
    assert ran == {ONEDNN}
    assert not packed_product._copies


def test_gradients_are_refused() -> None:
    with pytest.raises(UsageError, match="gradients"):
        packed_product.packed_product(torch.randn(8, 512), layer().weight)


def test_a_copy_goes_with_its_model_and_when_training_goes_on() -> None:
    torch.manual_seed(0)
    first, second = layer(), layer()
    for made in (first, second):
        stepped(made, torch.randn(8, 512))
    assert packed_product._held == 2 * 4 * 512 * 1031
    first(torch.randn(8, 512)).sum().backward()
    assert first.weight not in packed_product._copies
    assert packed_product._held == 4 * 512 * 1031
    del second, made
    gc.collect()
    assert not packed_product._copies


def test_without_room_the_weight_is_read_as_it_is() -> None:
    choose_products(packed_steps, packing=3_000_000)
    first, second, x = layer(), layer(), torch.randn(8, 512)
    for _ in range(2):
        assert stepped(first, x)[1] == {PACKED}
        found, ran = stepped(second, x)
        assert ran == {ONEDNN}
        same(second, x, found)
    del first
    gc.collect()
    assert stepped(second, x)[1] == {PACKED}


def test_a_race_takes_the_copy_only_where_it_gains_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [0.0], layer()
    monkeypatch.setattr(product_choice.time, "perf_counter", lambda: now[0])
    for cost, winner in ((8.9, PACKED), (9.1, ONEDNN)):
        costs = {TORCH: 12, ONEDNN: 10, PACKED: cost}

        def way(library: Library, costs: dict[Library, float] = costs) -> Tensor:
            now[0] += costs[library]
            return torch.zeros(1)

        stepped(made, torch.randn(8, 512))
        ways = {library: lambda x, weight, library=library, way=way: way(library) for library in costs}
        assert product_choice._winner(ways, torch.zeros(1), made.weight) == winner
        assert len(packed_product._copies) == (winner == PACKED)


@pytest.mark.parametrize("kind", ["eager", "static"])
def test_a_model_decodes_the_same_tokens_and_trains_on_without_copies(kind: str) -> None:
    torch.manual_seed(0)
    gpt1 = archbench.load("gpt1")
    config = gpt1.config("nano", vocab_size=2048, context_length=48, d_model=384, d_ff=1536)
    model = gpt1.build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    prompt = torch.randint(2048, (8, 5))
    decoded = []
    for packing in (False, True):
        choose_products(packed_steps, packing=2**30 * packing)
        with record_products() as ran, decoding(kind):
            decoded.append(torch.stack(list(gpt1.generate(model, prompt, 16, GREEDY))))
        assert (PACKED in ran) == packing
    assert torch.equal(*decoded)
    assert len(packed_product._copies) == 7  # three of each of two blocks, and the head; one of each is too small
    hidden = model.train().hidden(prompt)
    linear_cross_entropy(hidden[:, :-1], model.embedding.weight, prompt[:, 1:]).backward()
    assert not packed_product._copies


@pytest.mark.parametrize(("products", "copies"), [("measured", 1), ("unpacked", 0), ("torch", 0)])
def test_a_run_packs_unless_it_is_told_not_to(
    products: str, copies: int, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(product_choice, "_winner", lambda ways, *operands: PACKED if PACKED in ways else ONEDNN)
    config = RunConfig(architecture="gpt1", preset="nano", dtype="float32", products=products)
    made = layer()
    with measuring("decode", config) as (_, rows):
        rows.add("tokens_per_second", 1.0)
        stepped(made, torch.randn(8, 512))
        assert len(packed_product._copies) == copies
        [row] = rows.finished()
    assert row["products"] == {"measured": PACKED, "unpacked": ONEDNN, "torch": TORCH}[products]
