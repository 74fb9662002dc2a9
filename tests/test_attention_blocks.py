"""Attention by blocks is the definition, in values and gradients, in memory that a block bounds, and chosen by rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.errors import DeviceError
from archbench.kernels import attention_blocks, causal_attention, record_attention, resolve_attention
from archbench.kernels.attention_blocks import block_attention
from archbench.kernels.attention_torch import reference_attention
from attention_definition import naive_attention
from pairwise import pairwise

SHAPES = [  # B, H, G, T, S, D
    (2, 4, 4, 12, 12, 8),
    (3, 4, 2, 13, 13, 8),
    (2, 6, 1, 5, 12, 4),
    (1, 4, 2, 9, 30, 16),
    (2, 2, 2, 1, 7, 8),
]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_blocks, "ROWS", 4)
    monkeypatch.setattr(attention_blocks, "BLOCK_ELEMENTS", 150)  # some heads, one, or less than one


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, factor: float = 1.0) -> list[Tensor]:
    """q, k and v as one projection leaves them, and the output's gradient."""
    torch.manual_seed(0)
    B, H, G, T, S, D = shape
    q, upstream = (torch.randn(B, T, H, D, dtype=dtype).transpose(1, 2) for _ in range(2))
    k, v = torch.randn(B, S, 2 * G, D, dtype=dtype).transpose(1, 2).split(G, 1)
    return [factor * q, factor * k, v, upstream]


@pytest.mark.usefixtures("small_blocks")
@pairwise(shape=SHAPES, window=[None, 1, 3, 6], scale=[0.3, -0.3, 0.0], factor=[1.0, 40.0])
def test_values_and_gradients_are_the_definitions(
    shape: tuple[int, ...], window: int | None, scale: float, factor: float
) -> None:
    *inputs, upstream = make(shape, factor=factor)
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, expected = block_attention(*inputs, window=window, scale=scale), naive_attention(*inputs, window, scale)
    torch.testing.assert_close(out, expected)
    assert out.transpose(1, 2).is_contiguous(), "merging the heads copies nothing"
    gradients, wanted = (torch.autograd.grad(y, inputs, upstream) for y in (out, expected))
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize(("T", "S", "G", "window"), [(200, 200, 4, None), (150, 310, 2, None), (300, 300, 1, 100)])
def test_float32_in_blocks_of_their_size_is_as_exact_as_the_reference(
    T: int, S: int, G: int, window: int | None
) -> None:
    *inputs, upstream = make((2, 4, G, T, S, 32), torch.float32)
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = reference_attention(*exact, window=window, scale=0.2, dropout=0.0)
    out = block_attention(*inputs, window=window, scale=0.2)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for gradient, right in zip(torch.autograd.grad(out, inputs, upstream), wanted, strict=True):
        torch.testing.assert_close(gradient.double(), right, atol=2e-5, rtol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", [None, 3])
def test_dropouts_gradient_is_of_the_mask_that_was_drawn(window: int | None) -> None:
    inputs = [x.detach().requires_grad_() for x in make((2, 4, 2, 9, 9, 4))[:3]]

    def attend(*inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        return block_attention(*inputs, window=window, scale=0.5, dropout=0.3)

    assert not torch.equal(attend(*inputs), block_attention(*inputs, window=window, scale=0.5))
    assert torch.autograd.gradcheck(attend, inputs)


def test_two_calls_drop_differently_and_a_seed_repeats_both() -> None:
    q, k, v, _ = make((1, 2, 2, 70, 70, 8), torch.float32)
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append([block_attention(q, k, v, scale=0.5, dropout=0.5) for _ in range(2)])
    torch.testing.assert_close(*draws, rtol=0, atol=0)
    assert not torch.equal(*draws[0])


def test_a_batch_may_be_empty() -> None:
    *inputs, upstream = make((0, 4, 2, 5, 5, 8), torch.float32)
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = block_attention(*inputs, scale=1.0)
    assert out.shape == (0, 4, 5, 8)
    assert [x.shape for x in torch.autograd.grad(out, inputs, upstream)] == [x.shape for x in inputs]


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, operator: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        made = operator(*given, **(named or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return made


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("T", [256, 1024])
def test_no_tensor_is_larger_than_a_block_at_any_length(
    monkeypatch: pytest.MonkeyPatch, T: int, dropout: float
) -> None:
    bound = 2**17
    monkeypatch.setattr(attention_blocks, "BLOCK_ELEMENTS", bound)
    *inputs, upstream = make((1, 8, 8, T, T, 4), torch.float32)
    inputs = [x.detach().requires_grad_() for x in inputs]
    with Largest() as largest:
        torch.autograd.grad(block_attention(*inputs, scale=0.5, dropout=dropout), inputs, upstream)
    assert inputs[0].numel() < largest.elements <= bound < 8 * T * T


@pytest.fixture
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.mark.usefixtures("autocast")
def test_autocast_casts_as_for_torchs_attention() -> None:
    *inputs, upstream = make((1, 4, 2, 70, 70, 16), torch.float32)
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = causal_attention(*inputs, backend="blocks")
    assert out.dtype == causal_attention(*inputs, backend="sdpa").dtype == torch.bfloat16
    exact = [x.detach().bfloat16().double().requires_grad_() for x in inputs]
    expected = naive_attention(*exact, None, None)
    # Four roundings of numbers up to about 4, each relative 2**-8.
    torch.testing.assert_close(out.double(), expected, atol=4 * 4 * 2**-8, rtol=0)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for gradient, right in zip(torch.autograd.grad(out, inputs, upstream.bfloat16()), wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - right).norm() < 2**-6 * right.norm()


def test_where_it_cannot_run_it_is_refused_with_the_reason() -> None:
    q = torch.randn(1, 2, 6, 8)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="cannot compile attention by blocks"):
        torch.compile(causal_attention, fullgraph=True, backend="aot_eager")(q, q, q, backend="blocks")
    with pytest.raises(DeviceError, match=r"runs only on CPUs, but q is on cuda"):
        resolve_attention("blocks", device_type="cuda", dtype=torch.float32, T=8, S=8, D=16)


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        ({}, "blocks"),
        ({"T": 320, "S": 320}, "blocks"),
        ({"T": 256, "S": 256}, "sdpa"),
        ({"T": 1024, "S": 1024}, "sdpa"),
        ({"T": 1024, "S": 1024, "window": 256}, "blocks"),
        ({"T": 1024, "S": 1024, "window": 64}, "sdpa"),
        ({"T": 1024, "S": 1024, "window": 1024}, "sdpa"),
        ({"T": 1}, "sdpa"),
        ({"T": 500}, "sdpa"),
        ({"heads": 4}, "sdpa"),
        ({"dtype": torch.float64}, "sdpa"),
        ({"dtype": torch.bfloat16}, "reference"),
        ({"compiling": True}, "sdpa"),
        ({"dropout": 0.1}, "blocks"),
        ({"dropout": 0.1, "T": 256, "S": 256}, "reference"),
        ({"dropout": 0.1, "T": 4096, "S": 4096}, "blocks"),
    ],
)
def test_auto_takes_it_where_it_was_measured_to_be_faster(change: dict[str, Any], chosen: str) -> None:
    asked = {"device_type": "cpu", "dtype": torch.float32, "heads": 24, "T": 512, "S": 512, "D": 64}
    assert resolve_attention("auto", **{**asked, **change}) == chosen


def test_the_name_of_what_ran_is_recorded() -> None:
    q = torch.randn(1, 12, 320, 64)
    with record_attention() as ran:
        causal_attention(q, q, q)
    assert ran == {"blocks"}
