"""Precision: autocast over float32 parameters, the loss in float32, and no float16 where it cannot work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from archbench.errors import DeviceError
from archbench.measure.clock import CPUClock
from archbench.training.loop import train
from archbench.training.steps import next_token_loss, next_token_step
from training_setup import losses, new_state, recipe, run, sampler


def test_bfloat16_follows_float32_and_keeps_float32_parameters() -> None:
    config = recipe(steps=20)
    state = new_state(config, dtype="bfloat16")
    history = train(state, sampler(), config, clock=CPUClock())
    # bfloat16 has 8 bits of mantissa: products are good to 0.4 %, and the losses of so small a model to about 1 %.
    assert losses(history) == pytest.approx(losses(run(config)), rel=0.02)
    assert losses(history) != losses(run(config))
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}


def test_the_loss_is_computed_in_float32() -> None:
    state = new_state(recipe(), dtype="bfloat16")
    batch = sampler().batch(0)
    hidden: list[torch.Tensor] = []
    state.model.register_forward_hook(lambda module, args, output: hidden.append(output.detach()))
    head = state.module.embedding.weight.detach().bfloat16()  # as it is before the update
    loss = next_token_step(state, batch)
    logits = hidden[0].bfloat16().flatten(0, 1) @ head.t()  # the products are bfloat16's
    targets = batch.targets.flatten()
    assert loss.dtype == torch.float32
    # The same float32 sums in another order; what comes after the products in bfloat16 is off by a thousand times that.
    assert loss.item() == pytest.approx(F.cross_entropy(logits.float(), targets).item(), rel=1e-6)
    assert loss.item() != pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-4)


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="Use bfloat16 or float32"):
        new_state(recipe(), dtype="float16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 needs a CUDA GPU")
def test_float16_trains_with_loss_scaling_on_a_gpu() -> None:
    config = recipe(steps=20)
    state = new_state(config)
    state = type(state).create(state.model.cuda(), config, device=torch.device("cuda"), dtype="float16")
    from archbench.measure.clock import clock_for

    history = train(state, sampler(), config, clock=clock_for("cuda"))
    assert history.diverged_at is None
    assert losses(history)[-1] == pytest.approx(losses(run(config))[-1], rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_step_with_an_infinite_gradient_is_skipped_and_leaves_no_trace(optimizer: str) -> None:
    config = recipe(optimizer=optimizer, weight_decay=0.1, learning_rate=0.01)
    batch = sampler().batch(0)
    states = [new_state(config), new_state(config)]
    for state in states:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        assert getattr(state.optimizer, "_step_supports_amp_scaling", False), "scaling would read from the GPU"

    skipping, straight = states
    start = [parameter.detach().clone() for parameter in skipping.module.parameters()]
    for skipped in (True, False, True, False):
        skipping.backward(next_token_loss(skipping, batch))
        if skipped:
            weight = next(p for p in skipping.module.parameters() if p.grad is not None and p.ndim == 1)
            assert weight.grad is not None
            weight.grad[0] = torch.inf
            before = [parameter.detach().clone() for parameter in skipping.module.parameters()]
            skipping.update()
            for parameter, earlier in zip(skipping.module.parameters(), before, strict=True):
                assert torch.equal(parameter, earlier), "a skipped step moves nothing, by decay neither"
        else:
            skipping.update()
            straight.backward(next_token_loss(straight, batch))
            straight.update()
    for one, other, first in zip(skipping.module.parameters(), straight.module.parameters(), start, strict=True):
        assert torch.equal(one, other), "momentum remembers a step that was skipped"
        assert not torch.equal(one, first)
