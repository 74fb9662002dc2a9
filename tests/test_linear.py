"""The fast linear layer is F.linear, in values and gradients, whichever library computes each of its products."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from archbench.errors import StorageError
from archbench.kernels import linear, product_choice
from archbench.kernels.matmul import ChosenLinear
from archbench.kernels.product_choice import BATCHED, ONEDNN, TORCH, Case, Library, choose_products, record_products
from archbench.kernels.row_product import row_product
from archbench.measure.product_speeds import ProductSpeeds
from archbench.nn import Linear

needs_choice = pytest.mark.skipif(product_choice._cpu_maker() is None, reason="no x86 CPU, or torch without oneDNN")
LIBRARIES: tuple[Library, ...] = (TORCH, ONEDNN)


@pytest.fixture(autouse=True)
def _by_rule_again() -> Iterator[None]:
    yield
    choose_products(None)


@needs_choice
@pytest.mark.parametrize("shape", [(3, 5, 256), (7, 256), (1, 1, 256)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_equal_torch_by_either_library(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(301, 256, requires_grad=True)
    bias = torch.randn(301, requires_grad=True) if biased else None
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    expected = F.linear(x, weight, bias)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, upstream)
    for libraries in itertools.product(LIBRARIES, repeat=3):
        by_direction = dict(zip(("forward", "input", "weight"), libraries, strict=True))
        choose_products(lambda case, race, by=by_direction: by[case.direction])
        with record_products() as ran:
            out = ChosenLinear.apply(x, weight, bias)
            gradients = torch.autograd.grad(out, inputs, upstream)
        assert ran == {*libraries}
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)
        for gradient, reference in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, reference, atol=2e-4, rtol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(linear(x, weight, bias), expected, atol=2e-5, rtol=1e-5)


@needs_choice
def test_strided_rows_are_read_and_gradients_that_nobody_asks_for_are_skipped() -> None:
    torch.manual_seed(0)
    choose_products(lambda case, race: ONEDNN)
    hidden, weight = torch.randn(4, 6, 256), torch.randn(301, 256)
    torch.testing.assert_close(linear(hidden[:, -1], weight), F.linear(hidden[:, -1], weight), atol=2e-5, rtol=1e-5)
    frozen = hidden.clone()
    trained = weight.clone().requires_grad_()
    linear(frozen, trained).sum().backward()
    assert frozen.grad is None
    torch.testing.assert_close(trained.grad, hidden.sum((0, 1)).expand_as(weight), atol=1e-3, rtol=1e-5)


@needs_choice
def test_each_product_is_raced_once_a_machine_and_then_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path))
    races: list[set[str]] = []
    monkeypatch.setattr(product_choice, "_winner", lambda ways, *operands: races.append({*ways}) or ONEDNN)
    x, weight = torch.randn(40, 256), torch.randn(256, 256, requires_grad=True)
    for _ in range(2):  # two processes, as far as the choice knows
        choose_products(ProductSpeeds())
        linear(x, weight).sum().backward()
        linear(x[:33], weight)  # of the same octave
    assert races == [{TORCH, ONEDNN}] * 2  # forward and weight: x has no gradient
    linear(torch.randn(64, 256), weight)
    assert len(races) == 3
    (file,) = (tmp_path / "products").glob("*.json")
    assert len(json.loads(file.read_text())["winners"]) == 3
    file.write_text(file.read_text().replace("onednn", "torch", 1))
    with pytest.raises(StorageError, match="products"):
        ProductSpeeds()


@needs_choice
def test_a_race_takes_the_faster_and_ties_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {TORCH: 10, ONEDNN: 9}
    now = [0.0]
    monkeypatch.setattr(product_choice.time, "perf_counter", lambda: now[0])

    def way(library: Library) -> torch.Tensor:
        now[0] += costs[library]
        return torch.zeros(1)

    ways = {library: lambda library=library: way(library) for library in LIBRARIES}
    assert product_choice._winner(ways) == ONEDNN
    costs[ONEDNN] = 9.7
    assert product_choice._winner(ways) == TORCH


@needs_choice
def test_no_race_while_a_mode_counts_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def choice(case: Case, race: object) -> Library:
        raise AssertionError(f"{case} is raced")

    choose_products(choice)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        linear(torch.randn(40, 256), torch.randn(256, 256))
    assert flops.get_total_flops() == 2 * 40 * 256 * 256


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")
@pytest.mark.parametrize("rows", [256, 301, 302, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_a_row_times_blocks_of_a_weight_equals_torch(rows: int, biased: bool) -> None:
    """Blocks as many as threads, and rows that are left over."""
    torch.manual_seed(0)
    hidden, bias = torch.randn(1, 5, 64), torch.randn(rows) if biased else None
    for weight in (torch.randn(rows, 64), torch.randn(64, rows).t()):
        for x in (hidden[:, -1], hidden[:, 2:3], hidden[0, 0]):
            found = row_product(x, weight, bias)
            torch.testing.assert_close(found, F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


@needs_choice
def test_one_row_without_gradients_is_a_batch_of_blocks_where_that_is_fast() -> None:
    torch.manual_seed(0)
    layer, x = Linear(512, 1024), torch.randn(2, 512)
    for choice in (None, lambda case, race: race()):
        choose_products(choice)
        for rows in (x[:1], x):
            with record_products() as ran, torch.no_grad():
                found = layer(rows)
            if product_choice._batches_rows_fast():
                assert (ran == {BATCHED}) == (len(rows) == 1)
            torch.testing.assert_close(found, F.linear(rows, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_layer_works_in_every_dtype_under_autocast_compiled_and_on_meta() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, x = Linear(512, 1024), torch.randn(2, 512)  # large enough for oneDNN where that is used
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert linear(x.double(), layer.weight.double()).dtype == torch.float64
    assert Linear(512, 1024, device="meta")(x.to("meta")).shape == (2, 1024)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
