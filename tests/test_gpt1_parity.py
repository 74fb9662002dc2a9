"""GPT-1 is the published model: transformers' OpenAIGPTLMHeadModel agrees in every logit and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import archbench
from archbench.kernels import attention_backend
from parity import assert_same_gradients, logits_and_gradients, parameter_count, randomise

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 1000, "context_length": 64, "n_layer": 3, "n_head": 6, "d_model": 96, "d_ff": 384}


def published_model(preset: str = "paper", **sizes: int) -> nn.Module:
    """transformers' model of a preset's sizes, at its own default initialisation."""
    config: Any = archbench.load("gpt1").config(preset, **sizes)
    theirs = transformers.OpenAIGPTConfig(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.d_model,
        n_layer=config.n_layer,
        n_head=config.n_head,
        embd_pdrop=config.embd_dropout,
        resid_pdrop=config.resid_dropout,
        attn_pdrop=config.attn_dropout,
    )
    return transformers.OpenAIGPTLMHeadModel(theirs)


def our_model(theirs: nn.Module, preset: str = "paper", **sizes: int) -> nn.Module:
    """Ours, with their weights through the plugin's hook."""
    gpt1 = archbench.load("gpt1")
    config = gpt1.config(preset, **sizes)
    model = gpt1.build(config)
    model.load_state_dict(gpt1.import_weights(theirs.state_dict(), config))
    return model


def is_gain(name: str, parameter: nn.Parameter) -> bool:
    return "ln_" in name and name.endswith("weight")


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize(("randomised", "tolerance"), [(True, 1e-4), (False, 1e-6)])
def test_logits_and_gradients_equal_transformers(backend: str, randomised: bool, tolerance: float) -> None:
    torch.manual_seed(0)
    theirs = published_model(**SIZES).eval()
    if randomised:
        randomise(theirs, is_gain)
    ours = our_model(theirs, **SIZES).eval()
    tokens = torch.randint(SIZES["vocab_size"], (3, SIZES["context_length"] + 1))

    expected, their_gradients = logits_and_gradients(theirs, tokens)
    with attention_backend(backend):
        logits, our_gradients = logits_and_gradients(ours, tokens)

    assert (logits - expected).abs().max() < tolerance
    gpt1 = archbench.load("gpt1")
    mapped = gpt1.import_weights(their_gradients, gpt1.config("paper", **SIZES))
    assert_same_gradients(our_gradients, mapped, atol=tolerance)


@pytest.mark.slow  # for its memory: three models of 116 million parameters, one in float64
@pytest.mark.parametrize("randomised", [True, False])
def test_published_size_is_as_near_to_exact_logits_as_transformers_is(randomised: bool) -> None:
    # At this size float32's rounding alone is 2e-6 (at initialisation) and 2e-4 (randomised), in their code as in ours:
    # so the yardstick is their model in float64, and its distance from their model in float32.
    torch.manual_seed(0)
    theirs = published_model().eval()
    if randomised:
        randomise(theirs, is_gain)
    ours = our_model(theirs).eval()
    tokens = torch.randint(40_478, (1, 64))
    with torch.inference_mode():
        rounded = theirs(tokens).logits
        exact = theirs.double()(tokens).logits
        assert (ours(tokens) - exact).abs().max() < 4 * (rounded - exact).abs().max()


def test_published_size_has_116534784_parameters_as_transformers_has() -> None:
    gpt1 = archbench.load("gpt1")
    with torch.device("meta"):
        ours, theirs = gpt1.build(gpt1.config("paper")), published_model()
    assert parameter_count(ours) == 116_534_784
    assert parameter_count(theirs) == 116_534_784


def test_initial_weights_have_the_published_distribution() -> None:
    torch.manual_seed(0)
    gpt1 = archbench.load("gpt1")
    model = gpt1.build(gpt1.config("paper", n_layer=1, vocab_size=5000))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert abs(parameter.mean()) < 2e-4, name
            assert parameter.std().item() == pytest.approx(0.02, rel=0.01), name


def test_dropout_acts_where_the_published_model_has_it_and_only_in_training() -> None:
    torch.manual_seed(0)
    gpt1 = archbench.load("gpt1")
    tokens = torch.randint(1000, (2, 64))
    rates = ("embd_dropout", "resid_dropout", "attn_dropout")
    for rate in rates:
        others = {other: 0.0 for other in rates if other != rate}
        model = gpt1.build(gpt1.config("paper", **SIZES, **{rate: 0.1}, **others))
        assert not torch.equal(model(tokens), model(tokens)), rate
        model.eval()
        assert torch.equal(model(tokens), model(tokens)), rate


@pytest.mark.slow
def test_compiled_model_drops_out() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    gpt1 = archbench.load("gpt1")
    config = gpt1.config("nano", vocab_size=64, embd_dropout=0.1, resid_dropout=0.1, attn_dropout=0.1)
    compiled = torch.compile(gpt1.build(config), fullgraph=True, backend="aot_eager")
    tokens = torch.randint(64, (2, 32))
    assert not torch.equal(compiled(tokens), compiled(tokens))
