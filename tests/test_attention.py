"""Every attention backend is the textbook definition, in values and gradients."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from archbench.errors import DeviceError, UsageError
from archbench.kernels import attention_backend, causal_attention, record_attention, resolve_attention
from archbench.kernels.attention import BACKENDS


def naive_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None) -> Tensor:
    """One position at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    scale = D**-0.5 if scale is None else scale
    rows = []
    for b, h, t in product(range(B), range(H), range(T)):
        last = S - T + t
        first = 0 if window is None else max(0, last - window + 1)
        keys, values = k[b, h // (H // G), first : last + 1], v[b, h // (H // G), first : last + 1]
        rows.append(torch.softmax(keys @ q[b, h, t] * scale, dim=0) @ values)
    return torch.stack(rows).view(B, H, T, D)


SHAPES = [  # B, H, G, T, S, D
    (2, 4, 4, 9, 9, 8),
    (1, 4, 2, 9, 9, 8),
    (2, 6, 1, 5, 12, 4),
    (2, 4, 2, 1, 7, 8),
    (1, 2, 2, 1, 1, 8),
    (1, 3, 3, 2, 33, 16),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_backends_equal_the_definition(
    backend: str, shape: tuple[int, ...], window: int | None, scale: float | None
) -> None:
    torch.manual_seed(0)
    B, H, G, T, S, D = shape
    q = torch.randn(B, H, T, D, requires_grad=True)
    k, v = (torch.randn(B, G, S, D, requires_grad=True) for _ in range(2))
    upstream = torch.randn(B, H, T, D)

    expected = naive_attention(q, k, v, window, scale)
    expected_gradients = torch.autograd.grad(expected, (q, k, v), upstream.double())
    out = causal_attention(q, k, v, window=window, scale=scale, backend=backend)
    gradients = torch.autograd.grad(out, (q, k, v), upstream)

    assert out.dtype == q.dtype
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_within_its_rounding(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 40, 16).bfloat16()
    out = causal_attention(q, k, v, backend=backend)
    assert out.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: a relative 2**-8 for each of the four roundings of numbers up to about 2.
    torch.testing.assert_close(out, naive_attention(q, k, v, None, None).bfloat16(), atol=4 * 2 * 2**-8, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_of_a_preallocated_cache_need_no_copy(backend: str) -> None:
    torch.manual_seed(0)
    q, cache = torch.randn(2, 3, 2, 8), torch.randn(2, 2, 3, 20, 8)
    k, v = cache[:, :, :, :7]
    expected = naive_attention(q, k, v, None, None).float()
    torch.testing.assert_close(causal_attention(q, k, v, backend=backend), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    expected = causal_attention(q, k, v)
    draws = torch.stack([causal_attention(q, k, v, dropout=0.25, backend=backend) for _ in range(1500)])
    assert not torch.equal(draws[0], draws[1])
    # Five standard errors of a mean of 1,500.
    assert ((draws.mean(0) - expected).abs() <= 5 * draws.std(0) / math.sqrt(1500) + 1e-6).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph_and_is_recorded(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v: causal_attention(q, k, v, window=4, backend=backend), fullgraph=True, backend="aot_eager"
    )
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    for _ in range(2):
        with record_attention() as ran:
            out = compiled(q, k, v)
        assert ran == {backend}
    torch.testing.assert_close(out, causal_attention(q, k, v, window=4, backend="reference"))


def test_what_ran_is_recorded_and_not_what_was_asked_for() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    with record_attention() as everything:
        causal_attention(q, k, v)
        with record_attention() as ran, attention_backend("reference"):
            causal_attention(q, k, v)
        causal_attention(q, k, v, backend="auto")
    assert ran == {"reference"}
    assert everything == {"reference", "sdpa"}


def test_ambient_backend_ends_with_its_context() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    with pytest.raises(ZeroDivisionError), attention_backend("reference"):
        1 / 0  # noqa: B018
    with record_attention() as ran:
        causal_attention(q, k, v)
    assert ran == {"sdpa"}


def test_meta_device_uses_countable_matrix_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = torch.empty(3, 2, 4, 16, 8, device="meta")
    with FlopCounterMode(display=False) as counter, attention_backend("sdpa"):
        causal_attention(q, k, v)
    assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 16 * 16 * 8)


def test_auto_avoids_sdpa_where_it_leaves_its_fast_path() -> None:
    sizes = {"device_type": "cpu", "T": 512, "S": 512, "D": 64}
    assert resolve_attention("auto", dtype=torch.float32, **sizes) == "sdpa"
    assert resolve_attention("auto", dtype=torch.float32, dropout=0.1, **sizes) == "reference"
    assert resolve_attention("auto", dtype=torch.bfloat16, **sizes) == "reference"
    assert resolve_attention("auto", device_type="cuda", dtype=torch.bfloat16, T=512, S=512, D=64) == "sdpa"
    assert resolve_attention("sdpa", dtype=torch.float32, dropout=0.1, **sizes) == "sdpa"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 3, 6, 8), "v": torch.zeros(1, 3, 6, 8)}, "do not fit together"),
        ({"k": torch.zeros(1, 2, 5, 8), "v": torch.zeros(1, 2, 5, 8)}, "do not fit together"),
        ({"v": torch.zeros(1, 2, 6, 4)}, "do not fit together"),
        ({"window": 0}, "window"),
        ({"dropout": 1.0}, "dropout"),
        ({"backend": "spda"}, "Did you mean 'sdpa'"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(change: dict[str, object], message: str) -> None:
    arguments = {name: torch.zeros(1, 2, 6, 8) for name in "qkv"}
    with pytest.raises(UsageError, match=message):
        causal_attention(**{**arguments, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["triton", "flex"])
def test_planned_backends_are_refused_and_never_replaced(backend: str) -> None:
    with pytest.raises(DeviceError, match="does not have that backend"), attention_backend(backend):
        pass
