"""Optimizers: decay on matrices only and decoupled, fused where it is faster, Muon on the hidden matrices."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from archbench_plugins.gpt1 import GPT1
from torch import nn

from archbench.errors import ConfigError
from archbench.training.optimizers import MuonWithAdamW, build_optimizer, hidden_matrices
from archbench.training.steps import next_token_step
from training_setup import losses, model_config, new_state, recipe, run, sampler

CPU = torch.device("cpu")
OPTIMIZERS = ["adamw", "adam", "sgd", "muon"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_gradient_matrices_shrink_by_rate_times_decay_and_vectors_stay(name: str) -> None:
    model = GPT1(model_config())
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = build_optimizer(model, recipe(optimizer=name, learning_rate=0.5, weight_decay=0.2), CPU)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in model.named_parameters():
        kept = 1.0 - 0.5 * 0.2 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter, kept * before[key], msg=key)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    rate = {"sgd": 0.3}.get(name, 1e-2)
    history = run(recipe(optimizer=name, steps=60, learning_rate=rate))
    assert history.steps[-1].loss < history.steps[0].loss - 0.3
    assert all(math.isfinite(loss) for loss in losses(history))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_trained_by_exactly_one_group(name: str) -> None:
    model = GPT1(model_config())
    optimizer = build_optimizer(model, recipe(optimizer=name), CPU)
    trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in model.parameters())


def test_adamw_is_fused_for_float32_and_not_otherwise() -> None:
    model = GPT1(model_config())
    assert all(group["fused"] for group in build_optimizer(model, recipe(), CPU).param_groups)
    assert not any(group["fused"] for group in build_optimizer(model.bfloat16(), recipe(), CPU).param_groups)


def test_muon_trains_the_layers_matrices_and_adamw_the_rest() -> None:
    class Untied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(64, 8)
            self.positions = nn.Parameter(torch.zeros(64, 8))
            self.layers = nn.ModuleList(nn.Linear(8, 64) for _ in range(2))  # as many rows as the head
            self.shared = nn.Linear(8, 8)
            self.head = nn.Linear(8, 64)

    assert hidden_matrices(Untied()) == ["layers.0.weight", "layers.1.weight", "shared.weight"]
    of_gpt1 = hidden_matrices(GPT1(model_config()))
    assert sorted(of_gpt1) == sorted(
        f"blocks.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    )


def test_muon_on_a_model_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer muon.*Use optimizer adamw"):
        build_optimizer(nn.Embedding(8, 4), recipe(optimizer="muon"), CPU)


def test_muons_learning_rate_reaches_both_of_its_parts() -> None:
    state = new_state(recipe(optimizer="muon"))
    assert isinstance(state.optimizer, MuonWithAdamW)
    next_token_step(state, sampler().batch(0))
    state.optimizer.load_state_dict(copy.deepcopy(state.optimizer.state_dict()))
    state.set_learning_rate(0.0)
    before = copy.deepcopy(state.model.state_dict())
    next_token_step(state, sampler().batch(1))
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter requires a gradient"):
        build_optimizer(nn.ReLU(), recipe(), CPU)
