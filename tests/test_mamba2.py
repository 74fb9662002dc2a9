"""Mamba-2 is the published model: transformers' Mamba2ForCausalLM agrees in every logit and gradient, decoding too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import archbench
import parity
from archbench.errors import CheckpointError, ConfigError
from archbench.measure.flops import cache_bytes, count_flops
from parity import assert_same_gradients, logits_and_gradients, parameter_count

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 301, "context_length": 200, "n_layer": 3, "n_head": 6, "d_model": 48, "d_head": 16, "d_state": 24,
}  # fmt: skip
PUBLISHED = {
    "130m": ({}, 128_989_632),
    "370m": ({"n_layer": 48, "d_model": 1024, "n_head": 32}, 368_346_624),
    "780m": ({"n_layer": 48, "d_model": 1536, "n_head": 48}, 780_161_280),
    "1.3b": ({"n_layer": 48, "d_model": 2048, "n_head": 64}, 1_343_757_312),
    "2.7b": ({"n_layer": 64, "d_model": 2560, "n_head": 80}, 2_702_599_680),
}
"""The released state-spaces/mamba2-*: what differs from ``paper``, and parameters."""


def published_model(**sizes: Any) -> nn.Module:
    """transformers' model of the sizes of ``paper``, or of those given, at its own initialisation."""
    c: Any = archbench.load("mamba2").config("paper", **sizes)
    theirs = transformers.Mamba2Config(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layer,
        num_heads=c.n_head,
        head_dim=c.d_head,
        state_size=c.d_state,
        conv_kernel=c.d_conv,
        n_groups=c.n_group,
        expand=c.n_head * c.d_head // c.d_model,
        layer_norm_epsilon=c.norm_eps,
        tie_word_embeddings=c.tied_head,
        chunk_size=64,
    )
    return transformers.Mamba2ForCausalLM(theirs)


def our_model(theirs: nn.Module, **sizes: Any) -> Any:
    """Ours, with their weights through the plugin's hook."""
    mamba2 = archbench.load("mamba2")
    config = mamba2.config("paper", **sizes)
    model = mamba2.build(config)
    model.load_state_dict(mamba2.import_weights(theirs.state_dict(), config))
    return model


def randomise(model: nn.Module) -> None:
    """Every parameter; most heads remember a few to 100 positions."""
    parity.randomise(model, lambda name, parameter: name.endswith(("norm.weight", "norm_f.weight", ".D")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                parameter.uniform_(-4, 0)
            elif name.endswith("A_log"):
                parameter.uniform_(-2, 1)


@pytest.mark.parametrize(
    "sizes",
    [{"n_group": 1, "tied_head": True}, {"n_group": 3, "tied_head": False, "d_conv": 3}],
    ids=["as published", "groups, untied head"],
)
def test_logits_and_gradients_equal_transformers(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, **sizes}
    theirs = published_model(**sizes).eval()
    randomise(theirs)
    ours = our_model(theirs, **sizes).eval()
    tokens = torch.randint(sizes["vocab_size"], (2, 151))  # 150 positions are no multiple of a chunk

    expected, their_gradients = logits_and_gradients(theirs, tokens)
    logits, our_gradients = logits_and_gradients(ours, tokens)

    assert expected.std() > 0.5
    assert (logits - expected).abs().max() < 1e-4
    mamba2 = archbench.load("mamba2")
    mapped = mamba2.import_weights(their_gradients, mamba2.config("paper", **sizes))
    assert_same_gradients(our_gradients, mapped, atol=1e-5)


def test_decoding_from_the_state_equals_transformers_decoding_and_a_whole_pass() -> None:
    torch.manual_seed(1)
    theirs = published_model(**SIZES).eval()
    randomise(theirs)
    ours = our_model(theirs, **SIZES).eval()
    tokens = torch.randint(SIZES["vocab_size"], (2, 90))
    with torch.inference_mode():
        whole = ours(tokens)
        cache = ours.new_cache(2, 90)
        output = theirs(tokens[:, :70], use_cache=True)
        torch.testing.assert_close(ours.extend(tokens[:, :70], cache), output.logits[:, -1], atol=1e-4, rtol=0)
        for t in range(70, 90):
            output = theirs(tokens[:, t : t + 1], cache=output.cache, use_cache=True)
            logits = ours.extend(tokens[:, t : t + 1], cache)
            torch.testing.assert_close(logits, output.logits[:, -1], atol=1e-4, rtol=0)
            torch.testing.assert_close(logits, whole[:, t], atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 9, [2, 1, 3, 3], [9], [8, 1]])
def test_a_prompt_may_be_read_in_chunks_of_any_size(chunks: list[int]) -> None:
    torch.manual_seed(2)
    mamba2 = archbench.load("mamba2")
    model: Any = mamba2.build(mamba2.config("paper", **SIZES)).eval()
    randomise(model)
    tokens = torch.randint(SIZES["vocab_size"], (2, 9))
    cache = model.new_cache(2, 9)
    addresses = [tensor.data_ptr() for tensor in cache.tensors()]
    with torch.inference_mode():
        for chunk in tokens.split(chunks, dim=1):
            logits = model.extend(chunk, cache)
        torch.testing.assert_close(logits, model(tokens)[:, -1], atol=1e-5, rtol=1e-5)
    assert cache.length == 9
    assert [tensor.data_ptr() for tensor in cache.tensors()] == addresses  # written in place


def test_the_state_has_one_size_whatever_the_capacity() -> None:
    mamba2 = archbench.load("mamba2")
    with torch.device("meta"):
        model = mamba2.build(mamba2.config("paper"))
    # A layer and sequence: 24 heads of 64 × 128 and 3 positions of 24 · 64 + 2 · 128 channels, 4 bytes each.
    expected = 24 * (24 * 64 * 128 + 3 * (24 * 64 + 2 * 128)) * 4
    assert cache_bytes(model, 1, 1) == cache_bytes(model, 1, 2048) == expected == 19_390_464
    assert cache_bytes(model, 3, 2048) == 3 * expected


def test_in_bfloat16_states_stay_float32() -> None:
    mamba2 = archbench.load("mamba2")
    model: Any = mamba2.build(mamba2.config("nano")).to(torch.bfloat16)
    for conv_state, ssm_state in model.new_cache(1, 8).layers:
        assert (conv_state.dtype, ssm_state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_as_many_parameters_as_in_transformers(name: str) -> None:
    sizes, parameters = PUBLISHED[name]
    mamba2 = archbench.load("mamba2")
    with torch.device("meta"):
        ours, theirs = mamba2.build(mamba2.config("paper", **sizes)), published_model(**sizes)
    assert parameter_count(theirs) == parameters
    assert parameter_count(ours) == parameters


def test_transformers_default_configuration_has_as_many_parameters_here() -> None:
    mamba2 = archbench.load("mamba2")
    config = mamba2.config(
        "paper", vocab_size=32_768, n_layer=64, n_head=128, n_group=8, d_model=4096, tied_head=False
    )  # fmt: skip
    with torch.device("meta"):
        ours, theirs = mamba2.build(config), transformers.Mamba2ForCausalLM(transformers.Mamba2Config())
    assert parameter_count(theirs) == 7_285_403_648
    assert parameter_count(ours) == 7_285_403_648


def test_flops_a_token_do_not_grow_with_the_context() -> None:
    mamba2 = archbench.load("mamba2")
    with torch.device("meta"):
        model = mamba2.build(mamba2.config("paper", n_layer=2))
    short, long = (count_flops(model, 1, T) for T in (512, 2048))
    assert short.forward_per_token == long.forward_per_token
    assert short.training_per_token == pytest.approx(3 * short.forward_per_token, rel=0.02)


def test_initial_weights_have_the_published_distribution() -> None:
    torch.manual_seed(0)
    mamba2 = archbench.load("mamba2")
    model: Any = mamba2.build(mamba2.config("paper", n_layer=4, vocab_size=5000, n_head=96, d_head=16))
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.01)
    mixers = [block.mixer for block in model.blocks]
    bound = 768**-0.5  # torch's own: uniform within 1/√in
    for mixer in mixers:
        assert mixer.in_proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
        assert mixer.out_proj.weight.std().item() == pytest.approx((3 * 1536 * 4) ** -0.5, rel=0.01)  # 1/√L
        assert mixer.conv.weight.abs().max() <= 0.5
        assert torch.equal(mixer.skip, torch.ones(96))
    rates = torch.cat([mixer.A_log.exp() for mixer in mixers])
    assert (rates.min() >= 1, rates.max() <= 16) == (True, True)
    assert rates.mean().item() == pytest.approx(8.5, rel=0.1)
    steps = torch.cat([F.softplus(mixer.dt_bias) for mixer in mixers])
    assert (steps.min() > 0.0009, steps.max() < 0.11) == (True, True)
    assert steps.log().mean().exp().item() == pytest.approx(0.01, rel=0.15)


def test_weights_that_do_not_fit_are_named() -> None:
    mamba2 = archbench.load("mamba2")
    weights = published_model(**SIZES).state_dict()
    missing = {name: tensor for name, tensor in weights.items() if name != "backbone.layers.2.mixer.A_log"}
    with pytest.raises(CheckpointError, match=r"backbone.layers.2.mixer.A_log.*missing"):
        mamba2.import_weights(missing, mamba2.config("paper", **SIZES))
    with pytest.raises(CheckpointError, match=r"left over"):
        mamba2.import_weights(weights, mamba2.config("paper", **{**SIZES, "n_layer": 2}))
    with pytest.raises(ConfigError, match=r"4 groups do not share 6 heads"):
        mamba2.config("paper", **SIZES, n_group=4)
