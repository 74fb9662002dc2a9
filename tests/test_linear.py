"""The fast linear layer is F.linear, in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from archbench.kernels import linear
from archbench.kernels.matmul import onednn_linear
from archbench.nn import Linear

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(3, 5, 64), (7, 64), (1, 1, 64)])
@pytest.mark.parametrize("biased", [True, False])
def test_onednn_values_and_gradients_equal_torch(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(101, 64, requires_grad=True)
    bias = torch.randn(101, requires_grad=True) if biased else None
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    expected, out = F.linear(x, weight, bias), onednn_linear(x, weight, bias)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(y, inputs, upstream) for y in (out, expected))
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(onednn_linear(x, weight, bias), expected, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_onednn_reads_strided_rows_and_skips_gradients_nobody_asks_for() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 6, 64), torch.randn(101, 64)
    torch.testing.assert_close(onednn_linear(hidden[:, -1], weight), F.linear(hidden[:, -1], weight))
    frozen = hidden.clone()
    trained = weight.clone().requires_grad_()
    onednn_linear(frozen, trained).sum().backward()
    assert frozen.grad is None
    torch.testing.assert_close(trained.grad, hidden.sum((0, 1)).expand_as(weight), atol=1e-4, rtol=1e-5)


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
