"""GPT-2, LLaMA, Mistral and Gemma are the published models: transformers agrees in every logit and gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import archbench
from archbench.config import ModelConfig
from archbench.errors import CheckpointError, ConfigError
from archbench.kernels import attention_backend
from parity import assert_same_gradients, logits_and_gradients, parameter_count, randomise

transformers = pytest.importorskip("transformers")

V, T = 503, 48
FAMILY: dict[str, int] = {"n_kv_head": 2, "d_head": 24, "d_ff": 160}


def _shared(config: Any) -> dict[str, Any]:
    """What transformers calls the fields that the LLaMA family shares."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.d_head,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }


def _gpt2(config: Any) -> nn.Module:
    theirs = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.d_model, n_inner=config.d_ff,
        n_layer=config.n_layer, n_head=config.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(theirs)


def _llama(config: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_shared(config), tie_word_embeddings=config.tied_head)
    )


def _mistral(config: Any) -> nn.Module:
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(**_shared(config), sliding_window=config.window, tie_word_embeddings=False)
    )


def _gemma(config: Any) -> nn.Module:
    return transformers.GemmaForCausalLM(
        transformers.GemmaConfig(**_shared(config), hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
    )


class Family(NamedTuple):
    published: Callable[[Any], nn.Module]
    parameters: int
    """Of transformers' default configuration, which is what the preset ``paper`` is."""
    default: str
    sizes: Mapping[str, Any]


FAMILIES = {
    "gpt2": Family(_gpt2, 124_439_808, "GPT2", {"d_ff": 200}),
    "llama": Family(_llama, 6_738_415_616, "Llama", FAMILY),
    "mistral": Family(_mistral, 7_241_732_096, "Mistral", {**FAMILY, "window": 13}),
    "gemma": Family(_gemma, 8_537_680_896, "Gemma", FAMILY),
}
names = pytest.mark.parametrize("name", list(FAMILIES))


def our_config(name: str, **changes: Any) -> ModelConfig:
    sizes = {"vocab_size": V, "context_length": T, "n_layer": 3, "n_head": 4, "d_model": 72}
    return archbench.load(name).config("nano", **{**sizes, **FAMILIES[name].sizes, **changes})


def twins(name: str, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs with the same random weights, in evaluation mode."""
    torch.manual_seed(0)
    config = our_config(name, **changes)
    theirs = FAMILIES[name].published(config).eval()
    # Gemma's gains are added to 1.
    randomise(theirs, lambda label, parameter: label.endswith("weight") and parameter.dim() == 1 and name != "gemma")
    architecture = archbench.load(name)
    ours = architecture.build(config)
    ours.load_state_dict(architecture.import_weights(theirs.state_dict(), config))
    return ours.eval(), theirs


@names
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_logits_and_gradients_equal_transformers(name: str, backend: str) -> None:
    ours, theirs = twins(name)
    tokens = torch.randint(V, (3, T + 1))
    expected, their_gradients = logits_and_gradients(theirs, tokens)
    with attention_backend(backend):
        logits, gradients = logits_and_gradients(ours, tokens)

    assert (logits - expected).abs().max() < 1e-4
    architecture = archbench.load(name)
    mapped = architecture.import_weights(their_gradients, our_config(name))
    assert_same_gradients(gradients, mapped, atol=1e-4)


@pytest.mark.parametrize("name", ["llama"])
def test_tied_head_equals_transformers(name: str) -> None:
    ours, theirs = twins(name, tied_head=True)
    tokens = torch.randint(V, (2, T))
    with torch.inference_mode():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-4


@names
def test_cached_decoding_equals_transformers_own_cache(name: str) -> None:
    ours, theirs = twins(name)
    tokens = torch.randint(V, (2, T))
    with torch.inference_mode():
        cache, past = ours.new_cache(2, T), None
        for start, end in [(0, 9), (9, 10), (10, 27), *((t, t + 1) for t in range(27, T))]:
            logits = ours.extend(tokens[:, start:end], cache)
            output = theirs(tokens[:, start:end], past_key_values=past, use_cache=True)
            past = output.past_key_values
            assert (logits - output.logits[:, -1]).abs().max() < 1e-4, (start, end)


@names
def test_published_size_has_the_published_parameters(name: str) -> None:
    family = FAMILIES[name]
    architecture = archbench.load(name)
    with torch.device("meta"):
        ours = architecture.build(architecture.config("paper"))
        theirs = getattr(transformers, {"gpt2": "GPT2LMHeadModel"}.get(name, f"{family.default}ForCausalLM"))(
            getattr(transformers, f"{family.default}Config")()
        )
    assert parameter_count(ours) == family.parameters
    assert parameter_count(theirs) == family.parameters


@names
def test_paper_preset_is_transformers_default_configuration(name: str) -> None:
    """Of equal parameters there are many models: rates, bases and widths have to be the published ones too."""
    family = FAMILIES[name]
    theirs = getattr(transformers, f"{family.default}Config")().to_dict()
    with torch.device("meta"):
        ours = family.published(archbench.load(name).config("paper", n_layer=1, vocab_size=100)).config.to_dict()
    about_the_size = {"num_hidden_layers", "n_layer", "vocab_size", "n_inner", "architectures"}
    dropout = {"resid_pdrop", "embd_pdrop", "attn_pdrop"}
    ids = {key for key in theirs if key.endswith("token_id")}
    # The configuration published with Mistral 7B's weights says 32,768 positions and 1e-5; transformers' default, of
    # the same parameters, 131,072 and 1e-6.
    not_the_published = {"max_position_embeddings", "rms_norm_eps"} if name == "mistral" else set()
    unrelated = about_the_size | dropout | ids | not_the_published | {"transformers_version", "layer_types"}
    for key in theirs.keys() - unrelated:
        assert ours.get(key) == theirs[key], key


def test_gpt2_scales_what_adds_to_the_residual_stream_and_nothing_else() -> None:
    torch.manual_seed(0)
    gpt2 = archbench.load("gpt2")
    model = gpt2.build(gpt2.config("paper", n_layer=8, vocab_size=5000))
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        else:
            residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.01), name


def test_gpt2_without_biases_has_none() -> None:
    gpt2 = archbench.load("gpt2")
    model = gpt2.build(gpt2.config("nano", bias=False))
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_weights_of_another_architecture_are_refused_by_name() -> None:
    _, theirs = twins("mistral")
    gpt2 = archbench.load("gpt2")
    with pytest.raises(CheckpointError, match=r"c_attn\.bias: it is missing.*GPT2LMHeadModel"):
        gpt2.import_weights(theirs.state_dict(), our_config("gpt2"))


@pytest.mark.parametrize(("sizes", "culprit"), [({"n_kv_head": 3}, "n_kv_head"), ({"d_head": 25}, "d_head")])
def test_heads_that_do_not_fit_are_refused_by_name(sizes: dict[str, int], culprit: str) -> None:
    with pytest.raises(ConfigError, match=culprit):
        archbench.load("llama").build(our_config("llama", **sizes))


@names
def test_published_configuration_is_read_as_the_model_that_it_describes(name: str) -> None:
    config = our_config(name)
    with torch.device("meta"):
        published = FAMILIES[name].published(config).config.to_dict()
    architecture = archbench.load(name)
    dropout = {field: 0.0 for field in ("embd_dropout", "resid_dropout", "attn_dropout") if name == "gpt2"}
    assert architecture.import_config(published) == config.override(**dropout)


def test_configuration_of_a_model_with_other_mathematics_is_refused() -> None:
    published = FAMILIES["gemma"].published(our_config("gemma")).config.to_dict()
    gemma = archbench.load("gemma")
    assert gemma.import_config({**published, "hidden_act": "gelu"}) == our_config("gemma")  # as the first files say
    for field, value in (("hidden_act", "relu"), ("attention_bias", True), ("model_type", "gemma2")):
        with pytest.raises(CheckpointError, match=f"field {field}"):
            gemma.import_config({**published, field: value})
    mistral = archbench.load("mistral")
    published = FAMILIES["mistral"].published(our_config("mistral")).config.to_dict()
    assert mistral.import_config({**published, "sliding_window": None}).window is None
