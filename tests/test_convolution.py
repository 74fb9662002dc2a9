"""The causal convolution is torch's own, in values and gradients, and the same from its cached state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archbench.errors import ConfigError
from archbench.kernels.convolution import causal_convolution, reference_causal_convolution
from archbench.nn import CausalConv1d
from pairwise import pairwise


def published(x: Tensor, layer: CausalConv1d) -> Tensor:
    """``F.conv1d`` padded on both sides and cut, as published models have it."""
    T, padding = x.shape[1], layer.width - 1
    y = F.conv1d(x.transpose(1, 2), layer.weight, layer.bias, padding=padding, groups=layer.channels)
    return y[:, :, :T].transpose(1, 2)


@pairwise(T=[1, 2, 7], width=[1, 2, 4], bias=[True, False])
def test_values_and_gradients_equal_conv1d(T: int, width: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(5, width, bias=bias).double()
    x = torch.randn(3, T, 5, dtype=torch.float64, requires_grad=True)
    y, expected = layer(x), published(x, layer)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    for gradient, correct in zip(
        torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(gradient, correct)


def test_the_fast_form_equals_its_definition() -> None:
    torch.manual_seed(0)
    window, weight, bias = torch.randn(2, 9, 4), torch.randn(4, 1, 3), torch.randn(4)
    expected = reference_causal_convolution(window, weight[:, 0].t(), bias)
    torch.testing.assert_close(causal_convolution(window, weight, bias), expected)


def test_initial_weights_are_those_of_conv1d() -> None:
    torch.manual_seed(0)
    ours, theirs = CausalConv1d(6, 4), torch.nn.Conv1d(6, 6, 4, groups=6)
    theirs.load_state_dict(ours.state_dict())  # names and shapes
    for parameter in CausalConv1d(20_000, 4).parameters():
        assert parameter.abs().max() <= 0.5
        assert parameter.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.02)


@pytest.mark.parametrize("chunks", [[1] * 8, [1, 2, 5], [5, 3], [8], [3, 4, 1]])
def test_from_its_state_it_reads_on_where_it_stopped(chunks: list[int]) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(6, 4)
    x = torch.randn(2, 8, 6)
    state = layer.new_state(2)
    address = state.data_ptr()
    pieces = [layer(piece, state) for piece in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x))
    assert torch.equal(state, x[:, -3:])
    assert state.data_ptr() == address
    assert not state.requires_grad


def test_gradients_pass_from_a_state_to_what_it_was_made_of() -> None:
    torch.manual_seed(0)
    window = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    layer = CausalConv1d(4, 3).double()
    assert torch.autograd.gradcheck(lambda given: causal_convolution(given, layer.weight, layer.bias), window)


def test_bfloat16_is_summed_in_float32() -> None:
    # 256 + 1 - 256 is 0 if a sum is rounded to bfloat16 on its way, and here 1 is never the last to be added.
    x = torch.tensor([1.0, -256.0, 256.0]).view(1, 3, 1).to(torch.bfloat16)
    layer = CausalConv1d(1, 3, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    with torch.no_grad():
        assert layer(x)[0, -1].item() == 1.0
        assert layer(x.flip(1))[0, -1].item() == 1.0
        assert layer(x[:, -1:], x[:, :2].clone())[0, -1].item() == 1.0


def test_under_autocast_it_keeps_the_dtype_of_its_input() -> None:
    layer = CausalConv1d(4, 3)
    x = torch.randn(2, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        assert layer(x).dtype == torch.float32
        assert layer.new_state(1).dtype == torch.bfloat16
    assert layer.new_state(1).dtype == torch.float32


def test_compiled_it_is_one_graph_and_the_same() -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(4, 3)
    x = torch.randn(2, 5, 4, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    (gradient,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(layer(x).square().sum(), x)[0])


def test_a_convolution_of_no_taps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"d_conv.*0 taps"):
        CausalConv1d(4, 0)
