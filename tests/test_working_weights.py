"""Half-precision copies of weights: made together, and otherwise autocast, bit for bit."""

from __future__ import annotations

import pytest
import torch
from archbench_plugins.gpt1 import GPT1
from torch import Tensor, nn

from archbench.kernels import linear
from archbench.kernels.working_weights import WorkingWeights, working
from archbench.plugin.registry import load
from archbench.training.state import TrainState
from archbench.training.steps import next_token_step
from training_setup import model_config, recipe, sampler

BUILT_IN = ["gated-deltanet", "gemma", "gpt2", "hybrid", "llama", "mamba2", "mistral", "mixtral", "rwkv7"]


def trained(state: TrainState, step: object = next_token_step, updates: int = 4) -> tuple[list[float], list[Tensor]]:
    """Losses of some updates, and the weights after them."""
    batches = sampler(batch_size=4)
    found = []
    for number in range(updates):
        torch.manual_seed(number)
        found.append(float(step(state, batches.batch(number))))  # type: ignore[operator]
    return found, [parameter.detach().clone() for parameter in state.model.parameters()]


def new(accumulation: int = 1) -> TrainState:
    torch.manual_seed(0)
    model = GPT1(model_config(dropout=0.1))
    return TrainState.create(model, recipe(accumulation=accumulation), dtype="bfloat16")


def with_copies(state: TrainState) -> TrainState:
    """As on a GPU."""
    assert state._working is None, "on a CPU they cost time"
    state._working = WorkingWeights(state.dtype)
    return state


def assert_alike(one: tuple[list[float], list[Tensor]], other: tuple[list[float], list[Tensor]]) -> None:
    assert one[0] == other[0]
    assert all(map(torch.equal, one[1], other[1]))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_is_that_of_autocast_bit_for_bit(accumulation: int) -> None:
    state = with_copies(new(accumulation))
    assert_alike(trained(state), trained(new(accumulation)))
    assert state._working is not None
    assert len(state._working._masters) == 16, "2 layers of 4 products, with biases"


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_training_of_every_architecture_is_that_of_autocast(name: str) -> None:
    architecture = load(name)
    config = architecture.info.presets["nano"]

    def fresh() -> TrainState:
        torch.manual_seed(0)
        return TrainState.create(architecture.build(config), recipe(), dtype="bfloat16")

    ours, autocast = with_copies(fresh()), fresh()
    assert_alike(trained(ours, architecture.train_step), trained(autocast, architecture.train_step))
    assert ours._working is not None
    assert ours._working._masters


class TwoUses(nn.Module):
    """One weight twice, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.randn(8, 8))
        self.frozen = nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(linear(linear(x, self.shared), self.frozen), self.shared)


def test_a_weight_that_is_used_twice_and_a_frozen_one() -> None:
    torch.manual_seed(0)
    model, x = TwoUses(), torch.randn(4, 8)
    copies = WorkingWeights(torch.bfloat16)
    found = []
    for use in (False, False, True, True):
        copies.outdate()
        with torch.autocast("cpu", torch.bfloat16), copies.used() if use else torch.enable_grad():
            y = model(x)
        [gradient] = torch.autograd.grad(y.float().square().sum(), [model.shared])
        found.append((y, gradient))
    assert all(torch.equal(y, found[0][0]) and torch.equal(gradient, found[0][1]) for y, gradient in found)


def test_weights_that_change_are_copied_anew() -> None:
    weight, copies = nn.Parameter(torch.ones(2)), WorkingWeights(torch.bfloat16)

    def value() -> float:
        with copies.used():
            return float(working(weight)[0].detach())

    value()
    with torch.no_grad():
        assert value() == 1.0
        weight.fill_(2.0)
        assert value() == 2.0, "in place"
    weight.data = torch.full((2,), 3.0)
    copies.outdate()  # as every update does
    assert value() == 3.0, "behind autograd's back"


def test_copies_made_without_gradients_do_not_lose_them_later() -> None:
    weight, copies = nn.Parameter(torch.ones(2)), WorkingWeights(torch.bfloat16)
    for _ in range(2):
        with copies.used():
            with torch.no_grad():
                working(weight)
            assert working(weight).requires_grad


def test_second_derivatives_flow_through_copies() -> None:
    weight, copies = nn.Parameter(torch.full((2,), 3.0)), WorkingWeights(torch.bfloat16)
    for _ in range(2):
        with copies.used():
            y = working(weight).square().sum()
        [first] = torch.autograd.grad(y, [weight], create_graph=True)
        [second] = torch.autograd.grad(first.sum(), [weight])
        assert second.tolist() == [2.0, 2.0]
