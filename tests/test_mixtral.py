"""Mixtral is the published model: transformers agrees in logits, routing, balancing loss, gradients and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench.data.batches import Batch
from archbench.errors import CheckpointError
from archbench.kernels import attention_backend
from parity import assert_same_gradients, gradients, parameter_count, randomise

transformers = pytest.importorskip("transformers")

V, T = 503, 48
SIZES: dict[str, Any] = {
    "vocab_size": V, "context_length": T, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "d_model": 72, "d_head": 24,
    "d_ff": 56, "n_expert": 6, "n_active": 2,
}  # fmt: skip
MIXTRAL = archbench.load("mixtral")


def our_config(**changes: Any) -> Any:
    return MIXTRAL.config("nano", **{**SIZES, **changes})


def published_model(config: Any) -> nn.Module:
    theirs = transformers.MixtralConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        head_dim=config.d_head,
        max_position_embeddings=config.context_length,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        num_local_experts=config.n_expert,
        num_experts_per_tok=config.n_active,
        router_aux_loss_coef=config.router_aux_loss_coef,
        sliding_window=config.window,
        output_router_logits=True,
    )
    return transformers.MixtralForCausalLM(theirs)


def twins(**changes: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs with the same random weights, in evaluation mode."""
    torch.manual_seed(0)
    config = our_config(**changes)
    theirs = published_model(config).eval()
    randomise(theirs)
    ours = MIXTRAL.build(config)
    ours.load_state_dict(MIXTRAL.import_weights(theirs.state_dict(), config))
    return ours.eval(), theirs


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("changes", [{}, {"window": 13}, {"n_active": 3}, {"n_active": 1}], ids=str)
def test_logits_balancing_loss_and_gradients_equal_transformers(backend: str, changes: dict[str, Any]) -> None:
    ours, theirs = twins(**changes)
    tokens = torch.randint(V, (3, T + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    # A coefficient of 1, for at the published 0.02 the balancing loss hardly moves a gradient.
    expected = theirs(inputs)
    (F.cross_entropy(expected.logits.flatten(0, 1), targets.flatten()) + expected.aux_loss).backward()
    with attention_backend(backend):
        logits, balance = ours(inputs, balance=True)
        (F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + balance).backward()

    assert (logits - expected.logits).abs().max() < 1e-4
    assert balance.item() == pytest.approx(expected.aux_loss.item(), rel=1e-5)
    mapped = MIXTRAL.import_weights(gradients(theirs), our_config(**changes))
    assert_same_gradients(gradients(ours), mapped, atol=1e-4)


def test_every_layer_routes_as_transformers_does() -> None:
    ours, theirs = twins()
    tokens = torch.randint(V, (3, T))
    with torch.inference_mode():
        router_logits = theirs(tokens).router_logits
        _, routings = ours.read(tokens)
    assert len(routings) == len(router_logits) == 3
    for routing, logits in zip(routings, router_logits, strict=True):
        torch.testing.assert_close(routing.probabilities, logits.softmax(-1), atol=1e-4, rtol=1e-4)
        assert torch.equal(routing.chosen, logits.topk(2).indices)


@pytest.mark.parametrize("window", [None, 13])
def test_cached_decoding_equals_transformers_own_cache(window: int | None) -> None:
    ours, theirs = twins(window=window)
    tokens = torch.randint(V, (1, T))
    with torch.inference_mode():
        cache, past = ours.new_cache(1, T), None
        assert cache.keys.shape[3] == (window or T), "no more positions are kept than are seen"
        for start, end in [(0, 9), (9, 10), (10, 27), *((t, t + 1) for t in range(27, T))]:
            logits = ours.extend(tokens[:, start:end], cache)
            output = theirs(tokens[:, start:end], cache=past, use_cache=True)
            past = output.cache
            assert (logits - output.logits[:, -1]).abs().max() < 1e-4, (start, end)


def test_published_size_has_46702792704_parameters_as_transformers_has() -> None:
    with torch.device("meta"):
        ours = MIXTRAL.build(MIXTRAL.config("paper"))
        theirs = transformers.MixtralForCausalLM(transformers.MixtralConfig())
    assert parameter_count(ours) == 46_702_792_704
    assert parameter_count(theirs) == 46_702_792_704


def test_published_size_reads_each_token_with_12879925248_of_them() -> None:
    """Jiang et al. 2024, section 1: 13 billion active parameters; what its FLOPs are of."""
    from archbench.measure.flops import count_flops

    config = MIXTRAL.config("paper")
    with torch.device("meta"):
        model = MIXTRAL.build(config)
    idle = 32 * 6 * 3 * 4096 * 14_336
    assert parameter_count(model) - idle == 12_879_925_248
    embedding, gains = 32_000 * 4096, (2 * 32 + 1) * 4096
    attention = 32 * 2 * 2 * 8 * 4096  # scores and mixtures, 2 FLOPs each, over 8 positions
    assert count_flops(model, 1, 8).forward_per_token == 2 * (12_879_925_248 - embedding - gains) + attention


def test_paper_preset_is_the_published_configuration() -> None:
    theirs = transformers.MixtralConfig().to_dict()
    # The file published with the 8x7B's weights says 32,768 positions and a coefficient of 0.02; transformers'
    # defaults, of the same parameters, are 131,072 and 0.001.
    published = {**theirs, "max_position_embeddings": 32_768, "router_aux_loss_coef": 0.02}
    assert MIXTRAL.import_config(published) == MIXTRAL.config("paper")


@pytest.mark.parametrize("changes", [{}, {"window": 13, "router_aux_loss_coef": 0.01}], ids=str)
def test_published_configuration_gives_the_model_it_is_of(changes: dict[str, Any]) -> None:
    config = our_config(**changes)
    assert MIXTRAL.import_config(published_model(config).config.to_dict()) == config


@pytest.mark.parametrize("field", ["hidden_act", "router_jitter_noise", "model_type"])
def test_configuration_of_a_model_with_other_mathematics_is_refused(field: str) -> None:
    published = published_model(our_config()).config.to_dict()
    with pytest.raises(CheckpointError, match=f"field {field}"):
        MIXTRAL.import_config({**published, field: 0.5 if "noise" in field else "other"})


def checkpoint(theirs: nn.Module) -> dict[str, Tensor]:
    """The weights by the names, and in the pieces, of the published files."""
    files = {}
    for name, tensor in theirs.state_dict().items():
        name = name.replace(".mlp.", ".block_sparse_moe.")
        for expert, part in enumerate(tensor if ".experts." in name else ()):
            each = name.replace("gate_up_proj", "").replace("down_proj", "") + str(expert)
            if "gate_up_proj" in name:
                files[f"{each}.w1.weight"], files[f"{each}.w3.weight"] = part.chunk(2)
            else:
                files[f"{each}.w2.weight"] = part
        if ".experts." not in name:
            files[name] = tensor
    return files


def test_published_files_give_the_same_weights_as_the_live_model() -> None:
    ours, theirs = twins()
    files = checkpoint(theirs)
    assert "model.layers.2.block_sparse_moe.experts.5.w2.weight" in files
    weights = MIXTRAL.import_weights(files, our_config())
    assert weights.keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_expert": 7}, r"layers.0.block_sparse_moe.experts.6.w1.weight: it is missing"),
        ({"n_expert": 5}, r"layers.0.block_sparse_moe.experts.5.w1.weight: .*left over"),
        ({"d_ff": 57}, r"experts.0.w1.weight: as blocks.0.experts.gate_up its shape is"),
    ],
)
def test_published_files_of_another_size_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        MIXTRAL.import_weights(checkpoint(published_model(our_config())), our_config(**changes))


def state_of(model: nn.Module, **options: Any) -> archbench.TrainState:
    """Plain SGD of rate 1, whose update is the gradient."""
    return archbench.TrainState(model=model.train(), optimizer=torch.optim.SGD(model.parameters(), lr=1.0), **options)


def one_step(model: nn.Module, batch: Batch, **options: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss that train_step reports, and the gradient that it took."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = MIXTRAL.train_step(state_of(model, **options), batch)
    return float(loss), {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_training_step_reports_the_cross_entropy_and_descends_the_balancing_loss_too(accumulation: int) -> None:
    model, _ = twins(router_aux_loss_coef=0.5)
    tokens = torch.randint(V, (6, T + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    total = torch.zeros(())
    for micro in batch.split(accumulation):
        logits, balance = model(micro.inputs, balance=True)
        loss = F.cross_entropy(logits.flatten(0, 1), micro.targets.flatten())
        total = total + (loss + 0.5 * balance) / accumulation
    expected = dict(zip(gradients_names(model), torch.autograd.grad(total, list(model.parameters())), strict=True))
    with torch.no_grad():
        cross_entropy = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())

    loss, found = one_step(model, batch, accumulation=accumulation)
    assert loss == pytest.approx(cross_entropy.item(), rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


def gradients_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.slow
def test_compiled_training_step_is_one_graph_and_the_same_update() -> None:
    torch._dynamo.reset()
    tokens = torch.randint(V, (4, T + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    loss, update = one_step(twins()[0], batch, accumulation=2)
    model = twins()[0]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state = state_of(model, accumulation=2)
    state.model = torch.compile(model, fullgraph=True, backend="aot_eager")  # type: ignore[assignment]
    assert float(MIXTRAL.train_step(state, batch)) == pytest.approx(loss, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(before[name] - parameter.detach(), update[name], atol=1e-5, rtol=1e-4, msg=name)
    torch._dynamo.reset()


def test_training_under_autocast_descends_like_float32() -> None:
    tokens = torch.randint(V, (4, T + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    torch.manual_seed(0)
    model = MIXTRAL.build(our_config())  # initial weights: at random ones rounding sends many tokens elsewhere
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    loss, update = one_step(model, batch)
    model.load_state_dict(weights)
    rounded_loss, rounded = one_step(model, batch, dtype=torch.bfloat16)
    assert rounded_loss == pytest.approx(loss, rel=1e-3)
    for name, gradient in update.items():
        if "router" not in name:
            # Initial routers are all but undecided: a token that goes to another expert moves two experts' gradients.
            assert F.cosine_similarity(gradient.flatten(), rounded[name].flatten(), dim=0) > 0.9, name


def test_initial_weights_have_the_published_distribution() -> None:
    torch.manual_seed(0)
    model = MIXTRAL.build(MIXTRAL.config("small", n_layer=1))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert abs(parameter.mean()) < 2e-3, name
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
