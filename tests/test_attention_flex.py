"""The flex backend is the definition, compiled once for changing lengths, and is refused where torch has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archbench.errors import DeviceError
from archbench.kernels import causal_attention, resolve_attention
from archbench.kernels.attention_torch import flex_attention
from attention_definition import naive_attention


@pytest.fixture(autouse=True)
def _compiler() -> None:
    """Skip with the reason where there is no C++ compiler or no AVX2."""
    try:
        resolve_attention("flex", device_type="cpu", dtype=torch.float32, T=1, S=1, D=16)
    except DeviceError as error:
        pytest.skip(error.cause)


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, T, D) as a projection leaves it, k and v (B, G, S, D)."""
    torch.manual_seed(0)
    B, H, G, T, S, D = shape
    return torch.randn(B, T, H, D).transpose(1, 2), *torch.randn(2, B, G, S, D)


SMALL = (1, 4, 2, 9, 9, 16), 4
"""Shape and window of a kernel: compiling one takes seconds."""


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        pytest.param(*SMALL, marks=pytest.mark.slow),
        pytest.param(SMALL[0], None, marks=pytest.mark.slow),
        pytest.param((1, 6, 1, 130, 200, 80), 37, marks=pytest.mark.slow),
    ],
)
def test_values_are_the_definitions(shape: tuple[int, ...], window: int | None) -> None:
    q, k, v = inputs(shape)
    out = causal_attention(q, k, v, window=window, scale=0.2, backend="flex")
    assert out.dtype == q.dtype
    torch.testing.assert_close(out, naive_attention(q, k, v, window, 0.2).float(), atol=1e-5, rtol=1e-5)


def test_training_on_a_cpu_is_refused_with_the_reason() -> None:
    shape, window = SMALL
    q, k, v = inputs(shape)
    q.requires_grad_()
    with pytest.raises(DeviceError, match=r"no backward pass on CPUs\. Use auto, or one of sdpa, .*reference"):
        causal_attention(q, k, v, window=window, scale=0.2, backend="flex")


@pytest.mark.slow
def test_evaluation_of_what_can_be_trained_is_not_refused() -> None:
    shape, window = SMALL
    q, k, v = inputs(shape)
    q.requires_grad_()
    with torch.no_grad():
        out = causal_attention(q, k, v, window=window, scale=0.2, backend="flex")
    torch.testing.assert_close(out, naive_attention(q, k, v, window, 0.2).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_growing_cache_is_not_a_new_kernel_for_every_token() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for S in range(7, 30):
        q, k, v = torch.randn(1, 2, 1, 16), *torch.randn(2, 1, 2, S, 16)
        out = causal_attention(q, k, v, backend="flex")
        torch.testing.assert_close(out, naive_attention(q, k, v, None, None).float(), atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # for the first length, and for all


@pytest.mark.slow
def test_as_part_of_a_compiled_graph_it_is_the_definition_too() -> None:
    """As on GPUs; torch.compile's own code generator for CPUs refuses it, and so does causal_attention."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    attend = torch.compile(flex_attention, fullgraph=True, backend="aot_eager")
    q, k, v = torch.randn(1, 4, 30, 16), *torch.randn(2, 1, 2, 31, 16)
    out = attend(q, k, v, window=4, scale=0.25)
    torch.testing.assert_close(out, naive_attention(q, k, v, 4, 0.25).float(), atol=1e-5, rtol=1e-5)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="within a larger graph"):
        torch.compile(causal_attention, fullgraph=True, backend="aot_eager")(q, k, v, backend="flex")


def test_what_it_has_not_is_refused_with_the_reason() -> None:
    q, k, v = torch.randn(3, 1, 4, 9, 16)
    with pytest.raises(DeviceError, match="no dropout"):
        causal_attention(q, k, v, dropout=0.1, backend="flex")
    with pytest.raises(DeviceError, match="q is float64"):
        causal_attention(q.double(), k.double(), v.double(), backend="flex")
