"""Sparse experts are the readable dense ones, in values and gradients, and touch no expert that was not chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archbench.errors import ConfigError
from archbench.nn import Routing, SparseExperts, load_balancing_loss
from archbench.nn.experts import arranged, reference_experts

C, WIDTH = 20, 12


def layer(experts: int = 5, active: int = 2, dtype: torch.dtype = torch.float32) -> SparseExperts:
    torch.manual_seed(0)
    module = SparseExperts(C, WIDTH, experts, active, F.silu)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.to(dtype)


def unpopular(module: SparseExperts, experts: list[int]) -> Tensor:
    """x (2, 9, C) that none of ``experts`` is chosen for."""
    with torch.no_grad():
        module.router.weight[:, 0] = 0.0
        module.router.weight[experts, 0] = -20.0
    x = torch.randn(2, 9, C, dtype=module.down.dtype)
    x[..., 0] = 3.0
    return x


@pytest.mark.parametrize(("experts", "active"), [(5, 1), (5, 2), (5, 3), (4, 4), (1, 1)])
@pytest.mark.parametrize("shape", [(3, 7, C), (1, 1, C), (2, C)])
def test_values_and_gradients_equal_the_dense_reference(experts: int, active: int, shape: tuple[int, ...]) -> None:
    module = layer(experts, active)
    x = torch.randn(shape, requires_grad=True)
    inputs = [x, *module.parameters()]
    out, expected = module(x)[0], reference_experts(module, x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    for found, wanted in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    module = layer(3, 2, torch.float64)
    x = torch.randn(4, C, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))[0]
        return y

    assert torch.autograd.gradcheck(run, (x, *module.parameters()), fast_mode=True)


@pytest.mark.parametrize("tokens", [1, 2, 18])
@pytest.mark.parametrize("trained", [True, False])
def test_experts_that_are_not_chosen_are_not_touched(tokens: int, trained: bool) -> None:
    module = layer()
    x = unpopular(module, [0, 3]).flatten(0, 1)[:tokens]
    with torch.no_grad():
        expected = module(x)[0]
        module.gate_up[[0, 3]], module.down[[0, 3]] = float("nan"), float("nan")
    with torch.set_grad_enabled(trained):
        out, routing = module(x)
    assert not torch.isin(routing.chosen, torch.tensor([0, 3])).any()
    torch.testing.assert_close(out, expected)


def test_experts_without_tokens_get_zero_gradients() -> None:
    module = layer()
    x = unpopular(module, [0, 3])
    module(x)[0].square().sum().backward()
    for gradient in (module.gate_up.grad, module.down.grad):
        assert gradient is not None
        assert [bool(expert.any()) for expert in gradient] == [False, True, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_token_in_decoding_is_what_it_is_in_a_text(dtype: torch.dtype) -> None:
    module = layer(dtype=dtype)
    x = torch.randn(6, C, dtype=dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]  # relative to values near 1
    with torch.inference_mode():
        whole, routing = module(x)
        for position in range(6):
            one, its = module(x[position : position + 1])
            assert one.dtype == dtype
            assert torch.equal(its.chosen[0], routing.chosen[position])
            torch.testing.assert_close(one[0], whole[position], atol=tolerance, rtol=tolerance)


def test_shares_are_normalised_in_float32_whatever_the_dtype() -> None:
    module = layer(dtype=torch.bfloat16)
    routing, shares = module.route(torch.randn(50, C, dtype=torch.bfloat16))
    assert routing.probabilities.dtype == shares.dtype == torch.float32
    torch.testing.assert_close(shares.sum(-1), torch.ones(50))
    torch.testing.assert_close(routing.probabilities.sum(-1), torch.ones(50))
    assert (shares[:, 0] >= shares[:, 1]).all()


def test_the_same_bits_twice() -> None:
    module = layer()
    x = torch.randn(64, C, requires_grad=True)
    first, second = (torch.autograd.grad(module(x)[0].square().sum(), [x, *module.parameters()]) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_arranged_rows_and_their_gradient() -> None:
    torch.manual_seed(0)
    x, order = torch.randn(5, 3, requires_grad=True), torch.randperm(10)
    y, expected = arranged(x, order, order.argsort()), x.repeat_interleave(2, 0)[order]
    assert torch.equal(y, expected)
    upstream = torch.randn(10, 3)
    (found,), (wanted,) = (torch.autograd.grad(out, x, upstream) for out in (y, expected))
    torch.testing.assert_close(found, wanted)


def test_every_expert_for_every_token_by_products_of_static_shapes_is_the_same() -> None:
    module, x = layer(), torch.randn(7, C)
    with torch.no_grad():
        routing, shares = module.route(x)
        torch.testing.assert_close(module.apply_every_expert(x, routing.chosen, shares), reference_experts(module, x))


def routed(probabilities: Tensor, active: int) -> Routing:
    return Routing(probabilities, probabilities.topk(active).indices)


def test_balancing_loss_is_a_when_all_experts_are_alike_and_e_when_the_same_a_get_everything() -> None:
    E, A, N = 8, 2, 64
    tokens = torch.arange(N)[:, None]
    alike = Routing(torch.full((N, E), 1 / E), torch.cat([tokens % E, (tokens + 1) % E], 1))
    torch.testing.assert_close(load_balancing_loss([alike, alike]), torch.tensor(float(A)))
    collapsed = Routing(torch.tensor([0.5, 0.5] + [0.0] * (E - 2)).expand(N, E), torch.tensor([[0, 1]]).expand(N, A))
    torch.testing.assert_close(load_balancing_loss([collapsed]), torch.tensor(float(E)))


def test_balancing_loss_takes_all_layers_together_and_its_gradient_evens_the_load_out() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(30, 5).add_(torch.tensor([2.0, 0, 0, 0, 0])).requires_grad_() for _ in range(3)]
    routings = [routed(scores.softmax(-1), 2) for scores in logits]
    loss = load_balancing_loss(routings)
    chosen = torch.cat([routing.chosen for routing in routings])
    frequency = F.one_hot(chosen, 5).sum((0, 1)) / 90
    expected = 5 * (frequency * torch.cat([routing.probabilities for routing in routings]).mean(0)).sum()
    torch.testing.assert_close(loss, expected)
    apart = torch.stack([load_balancing_loss([routing]) for routing in routings]).mean()
    assert (loss - apart).abs() > 1e-3  # so that the two conventions can be told apart
    gradients = torch.autograd.grad(loss, logits)
    assert all(gradient[:, 0].sum() > 0 for gradient in gradients), "less of the expert that has too much"


@pytest.mark.parametrize("active", [0, 6])
def test_more_experts_a_token_than_there_are_is_refused(active: int) -> None:
    with pytest.raises(ConfigError, match="n_active"):
        SparseExperts(C, WIDTH, 5, active, F.silu)
