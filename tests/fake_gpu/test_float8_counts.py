"""What products in float8 ask of the GPU: three scaled products each, casts, and no wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counts import counted

from archbench.config import TrainingConfig
from archbench.data.batches import Batch
from archbench.kernels import float8_head, float8_linear
from archbench.kernels.float8_linear import E4M3, E5M2, Operand, Which, scaled_product
from archbench.kernels.product_choice import record_products
from archbench.plugin.registry import load
from archbench.training.state import TrainState

B, T = 8, 512


def new_state(which: Which) -> tuple[TrainState, Batch]:
    architecture = load("gpt1")
    torch.manual_seed(0)
    model = architecture.build(architecture.config("paper", n_layer=2)).cuda()
    recipe = TrainingConfig(batch_size=B, learning_rate=1e-4, steps=10)
    state = TrainState.create(model, recipe, device=torch.device("cuda"), dtype="bfloat16", float8=which)
    tokens = torch.zeros(B, T, dtype=torch.int64, device="cuda")
    return state, Batch(tokens, tokens)


@pytest.mark.parametrize(("which", "layers"), [("head", 0), ("all", 2 * 4)])
def test_an_update_multiplies_in_float8_and_waits_for_nothing(
    which: Which, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[torch.dtype, torch.dtype]] = []

    def noted(left: Operand, right: Operand, *others: Any, **named: Any) -> Any:
        assert left.values.shape[1] == right.values.shape[1]
        assert not left.values.shape[1] % 16
        assert not right.values.shape[0] % 16
        calls.append((left.values.dtype, right.values.dtype))
        return scaled_product(left, right, *others, **named)

    step = load("gpt1").train_step
    usual_state, batch = new_state("none")
    for _ in range(2):
        step(usual_state, batch)
    usual = counted(lambda: step(usual_state, batch))
    monkeypatch.setattr(float8_linear, "product", noted)
    monkeypatch.setattr(float8_head, "product", noted)
    state, batch = new_state(which)
    for _ in range(2):
        step(state, batch)
    calls.clear()
    with record_products() as ran:
        seen = counted(lambda: step(state, batch))
    assert ran == {"float8-head"} | ({"float8-layers"} if layers else set())
    assert (seen.syncs, seen.to_host, seen.to_device) == (0, 0, 0)
    chunks = 1  # of the head: 4,096 rows of 40,478 logits fit into 512 MiB
    products = chunks + layers
    assert calls.count((E4M3, E4M3)) == products
    assert calls.count((E5M2, E4M3)) == 2 * products
    assert len(calls) == 3 * products
    assert seen.triton - usual.triton == 3 * products, "each operand is rounded, along rows and columns, by one kernel"
