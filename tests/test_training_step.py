"""One optimizer update is the right one: against transformers and plain PyTorch, and in micro-batches."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from archbench_plugins.gpt1 import GPT1, import_weights

import archbench
from archbench.data.batches import Batch
from archbench.errors import HookFailedError, HookResultError, PluginError
from archbench.measure.clock import CPUClock
from archbench.protocols import LinearHeadModel
from archbench.training.checkpoints import latest_checkpoint, load_weights
from archbench.training.loop import train
from archbench.training.state import TrainState
from archbench.training.steps import next_token_step
from training_setup import B, T, V, losses, model_config, new_state, recipe, run, sampler


def test_twenty_steps_give_the_losses_of_a_plain_loop_around_transformers() -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    torch.manual_seed(0)
    theirs = OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(
            vocab_size=V, n_positions=T, n_embd=16, n_layer=2, n_head=2, afn="gelu",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    ours = GPT1(model_config())
    ours.load_state_dict(import_weights(copy.deepcopy(theirs.state_dict()), ours.config))
    config = recipe(steps=20, schedule="constant", warmup_fraction=0.0, weight_decay=0.1, grad_clip=1.0)
    batches = sampler()

    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in theirs.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, foreach=False)
    expected = []
    theirs.train()
    for step in range(20):
        batch = batches.batch(step)
        logits = theirs(input_ids=batch.inputs).logits
        loss = F.cross_entropy(logits.view(-1, V), batch.targets.view(-1))
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        expected.append(loss.item())

    history = train(TrainState.create(ours, config), batches, config, clock=CPUClock())
    assert expected[0] - expected[-1] > 0.5, "the comparison would show little if nothing were learnt"
    assert losses(history) == pytest.approx(expected, abs=1e-4)


def test_four_micro_batches_make_the_step_of_one_batch() -> None:
    # The same sums in another order: float32 rounding, a few units in the last place a step.
    whole = run(recipe(steps=10, batch_size=8))
    micro = run(recipe(steps=10, batch_size=2, accumulation=4))
    assert losses(micro) == pytest.approx(losses(whole), rel=1e-4)
    assert [r.grad_norm for r in micro.steps] == pytest.approx([r.grad_norm for r in whole.steps], rel=1e-3)
    assert [r.tokens for r in micro.steps] == [8 * T] * 10


def test_unequal_micro_batches_still_average_over_tokens() -> None:
    class UnequalSplit(TrainState):
        def split(self, batch: Batch) -> list[Batch]:
            return [Batch(batch.inputs[rows], batch.targets[rows]) for rows in (slice(0, 1), slice(1, B))]

    config, batch = recipe(), sampler().batch(0)
    whole = new_state(config)
    unequal = UnequalSplit(copy.deepcopy(whole.model), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]))
    assert next_token_step(unequal, batch).item() == pytest.approx(next_token_step(whole, batch).item(), rel=1e-6)
    assert unequal.grad_norm is not None
    assert whole.grad_norm is not None
    # Rounding only: an average of the two micro-batches' averages would be off by several per cent.
    assert unequal.grad_norm.item() == pytest.approx(whole.grad_norm.item(), rel=1e-5)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_recorded() -> None:
    batch = sampler().batch(0)
    free, clipped = new_state(recipe(grad_clip=None)), new_state(recipe(grad_clip=0.01))
    seen: list[float] = []

    def spy(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.nn.utils.get_total_norm(gradients).item())

    for state in (free, clipped):
        state.optimizer.register_step_pre_hook(spy)
        next_token_step(state, batch)
    assert free.grad_norm is not None
    assert clipped.grad_norm is not None
    assert free.grad_norm == clipped.grad_norm
    assert seen[0] == pytest.approx(free.grad_norm.item(), rel=1e-6)
    assert seen[1] == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_never_updates_is_an_error_not_a_run_that_learns_nothing() -> None:
    config = recipe(steps=3)
    with pytest.raises(HookResultError, match="0 updates"):
        train(new_state(config), sampler(), config, clock=CPUClock(), step=lambda state, batch: torch.zeros(()))
    with pytest.raises(HookResultError, match="no gradients"):
        new_state(config).update()


def test_the_plugins_own_train_step_is_what_the_loop_runs() -> None:
    architecture = archbench.load("gpt1")
    config = recipe(steps=3)
    through_hooks = train(new_state(config), sampler(), config, clock=CPUClock(), step=architecture.train_step)
    assert losses(through_hooks) == losses(run(config))


class AllLogits(GPT1):
    """A GPT-1 that offers its hidden states and head, and does not promise that the head is linear."""

    head_parameters = None  # type: ignore[assignment]


class Capped(GPT1):
    """A GPT-1 that promises a linear head and caps its logits (Gemma Team 2024, arXiv:2408.00118, section 2)."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return 30 * torch.tanh(super().head(hidden) / 30)


class Unaware(GPT1):
    """A GPT-1 whose forward cannot be asked for the hidden states."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.head(self.hidden(tokens))


def test_gpt1s_head_is_the_linear_layer_that_it_offers() -> None:
    torch.manual_seed(0)
    model = GPT1(model_config())
    assert isinstance(model, LinearHeadModel)
    weight, bias = model.head_parameters()
    hidden, tokens = torch.randn(2, 3, 16), torch.randint(V, (2, T))
    torch.testing.assert_close(model.head(hidden), F.linear(hidden, weight, bias))
    assert torch.equal(model.head(model(tokens, logits=False)), model(tokens))


def test_a_loss_without_logits_trains_as_one_with_all_of_them() -> None:
    config = recipe(steps=10)
    outputs: dict[str, list[tuple[int, ...]]] = {}
    results = {}
    for kind in (GPT1, AllLogits):
        torch.manual_seed(0)
        model = kind(model_config())
        shapes = outputs[kind.__name__] = []
        model.register_forward_hook(lambda module, args, output, shapes=shapes: shapes.append(tuple(output.shape)))
        results[kind.__name__] = losses(train(TrainState.create(model, config), sampler(), config, clock=CPUClock()))
    assert set(outputs["GPT1"]) == {(B, T, 16)}, "the model is called, so that its hooks run, and gives no logits"
    assert set(outputs["AllLogits"]) == {(B, T, V)}
    # The same products and sums in another order: float32 noise over ten steps.
    assert results["GPT1"] == pytest.approx(results["AllLogits"], rel=1e-5)


@pytest.mark.parametrize(("kind", "cause"), [(Capped, "its head.. is not the linear"), (Unaware, "no argument logits")])
def test_a_head_that_is_not_what_it_promises_is_an_error(kind: type[GPT1], cause: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(PluginError, match=cause):
        next_token_step(TrainState.create(kind(model_config()), recipe()), sampler().batch(0))


def test_a_compiled_model_is_what_trains() -> None:
    torch._dynamo.reset()
    ran: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        number = len(ran)
        ran.append(0)

        def call(*args: object) -> object:
            ran[number] += 1
            return graph(*args)

        return call

    config = recipe(steps=3)
    state = new_state(config)
    state.model = torch.compile(state.model, fullgraph=True, backend=backend)  # type: ignore[assignment]
    history = train(state, sampler(), config, clock=CPUClock())
    assert ran == [3], "one graph, run in every step"
    assert losses(history) == losses(run(config))


@pytest.mark.slow
def test_compiled_training_matches_eager() -> None:
    config = recipe(steps=4)
    history = train(new_state(config, compile=True), sampler(), config, clock=CPUClock())
    # Fused operations round differently; four steps apart is still float32 noise.
    assert losses(history) == pytest.approx(losses(run(config)), rel=1e-4)


def test_a_compiled_models_checkpoint_has_the_plugins_own_names(tmp_path: Path) -> None:
    config = recipe(steps=2)
    state = new_state(config)
    state.model = torch.compile(state.model, backend="eager")  # type: ignore[assignment]
    train(state, sampler(), config, clock=CPUClock(), checkpoints=tmp_path)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    GPT1(model_config()).load_state_dict(load_weights(newest))


@pytest.mark.parametrize("wrapped", [False, True], ids=["raised directly", "raised inside a hook"])
def test_a_failing_compiler_is_an_error(wrapped: bool) -> None:
    def broken_backend(graph: object, inputs: object) -> object:
        raise ValueError("no such instruction")

    def step(state: TrainState, batch: Batch) -> torch.Tensor:
        try:
            return next_token_step(state, batch)
        except RuntimeError as error:
            if not wrapped:
                raise
            raise HookFailedError("gpt1", "train_step raised", "Fix it") from error

    config = recipe(steps=2)
    state = new_state(config)
    state.model = torch.compile(state.model, backend=broken_backend)  # type: ignore[assignment]
    with pytest.raises(archbench.ArchbenchError, match=r"--compile: torch.compile failed.*no such instruction"):
        train(state, sampler(), config, clock=CPUClock(), step=step)


def test_a_step_s_time_begins_before_its_batch_is_on_the_device() -> None:
    events: list[str] = []

    class Travelling(Batch):
        def to(self, device: torch.device | str) -> Batch:
            events.append("copy")
            return super().to(device)

    class Batches:
        def batch(self, step: int) -> Batch:
            events.append("drawn")
            batch = sampler().batch(step)
            return Travelling(batch.inputs, batch.targets)

    class Noting(CPUClock):
        def mark(self) -> int:
            events.append("mark")
            return super().mark()

    train(new_state(recipe(steps=2)), Batches(), recipe(steps=2), clock=Noting())
    assert "".join(name[0] for name in events).endswith("dmcmdmcm"), events
