"""Gated DeltaNet is the published model: transformers' blocks and layers agree in every value and gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
import olmo_hybrid
from archbench.errors import CheckpointError
from archbench.measure.flops import cache_bytes, count_flops
from olmo_hybrid import published_names
from parity import assert_same_gradients, logits_and_gradients, parameter_count, randomise

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 300, "context_length": 64, "n_layer": 3, "n_head": 3, "d_model": 96, "d_head": 24, "d_value": 40,
    "d_ff": 160,
}  # fmt: skip


def published_model(**sizes: Any) -> nn.Module:
    """transformers' model of the preset ``paper`` with these sizes."""
    return olmo_hybrid.published_model(archbench.load("gated-deltanet").config("paper", **sizes))


def our_model(theirs: nn.Module, **sizes: Any) -> nn.Module:
    """Ours, with their weights through the plugin's hook."""
    gated_deltanet = archbench.load("gated-deltanet")
    config: Any = gated_deltanet.config("paper", **sizes)
    model = gated_deltanet.build(config)
    weights = published_names(theirs.state_dict(), config.n_head * config.d_head)
    model.load_state_dict(gated_deltanet.import_weights(weights, config))
    return model


def is_gain(name: str, parameter: nn.Parameter) -> bool:
    return "norm" in name


@pytest.mark.parametrize(("tied", "norm_eps"), [(True, 1e-5), (False, 0.02)])
@pytest.mark.parametrize("randomised", [True, False])
def test_logits_and_gradients_equal_transformers(randomised: bool, tied: bool, norm_eps: float) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "tied_head": tied, "norm_eps": norm_eps}
    theirs = published_model(**sizes).eval()
    if randomised:
        randomise(theirs, is_gain)
    ours = our_model(theirs, **sizes).eval()
    tokens = torch.randint(SIZES["vocab_size"], (3, SIZES["context_length"] + 1))

    expected, their_gradients = logits_and_gradients(theirs, tokens)
    logits, our_gradients = logits_and_gradients(ours, tokens)

    assert (logits - expected).abs().max() < (1e-4 if randomised else 1e-6)
    gated_deltanet = archbench.load("gated-deltanet")
    renamed = published_names(their_gradients, SIZES["n_head"] * SIZES["d_head"])
    mapped = gated_deltanet.import_weights(renamed, gated_deltanet.config("paper", **sizes))
    assert_same_gradients(our_gradients, mapped, atol=1e-5)


def test_in_float64_they_differ_by_rounding_alone() -> None:
    # transformers computes the recurrence in float32 whatever the dtype; ours follows the model's.
    torch.manual_seed(0)
    theirs = published_model(**SIZES).eval()
    randomise(theirs, is_gain)
    ours = our_model(theirs, **SIZES).eval()
    tokens = torch.randint(SIZES["vocab_size"], (3, SIZES["context_length"]))
    with torch.inference_mode():
        rounded = theirs(tokens).logits
        exact = ours.double()(tokens)
        assert exact.dtype == torch.float64
        assert (ours.float()(tokens) - exact).abs().max() < 2 * (rounded - exact).abs().max()


def test_decoding_from_a_state_equals_transformers_whole_pass() -> None:
    torch.manual_seed(0)
    theirs = published_model(**SIZES).eval()
    randomise(theirs, is_gain)
    ours: Any = our_model(theirs, **SIZES).eval()
    tokens = torch.randint(SIZES["vocab_size"], (2, 60))
    with torch.inference_mode():
        expected = theirs(tokens).logits
        for pieces in ([1] * 60, [2, 1, 3, 33, 1, 20], [40, 1, 1, 18], [60]):
            cache = ours.new_cache(2, 60)
            end = 0
            for piece in pieces:
                end += piece
                logits = ours.extend(tokens[:, end - piece : end], cache)
                assert (logits - expected[:, end - 1]).abs().max() < 1e-4, (pieces, end)


def test_the_layer_equals_qwen3_nexts_in_values_and_gradients() -> None:
    from archbench_plugins.gated_deltanet import GatedDeltaNetConfig, Mixer
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    torch.manual_seed(0)
    config = GatedDeltaNetConfig(**SIZES)
    C, H, D, M = config.d_model, config.n_head, config.d_head, config.d_value
    theirs = Qwen3NextGatedDeltaNet(
        transformers.Qwen3NextConfig(
            hidden_size=C, linear_num_key_heads=H, linear_num_value_heads=H, linear_key_head_dim=D,
            linear_value_head_dim=M, linear_conv_kernel_dim=4, rms_norm_eps=config.norm_eps, num_hidden_layers=1,
            layer_types=["linear_attention"],
        ),
        layer_idx=0,
    )  # fmt: skip
    randomise(theirs, is_gain)

    def ours_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Their rows are head by head q, k, v and gate, and head by head b and a."""
        qkvz = tensors["in_proj_qkvz.weight"].view(H, 2 * D + 2 * M, C).split([D, D, M, M], dim=1)
        b, a = tensors["in_proj_ba.weight"].view(H, 2, C).unbind(1)
        return {
            "in_proj.weight": torch.cat([*(part.reshape(-1, C) for part in qkvz), a, b]),
            "conv.weight": tensors["conv1d.weight"],
            "A_log": tensors["A_log"],
            "dt_bias": tensors["dt_bias"],
            "norm.weight": tensors["norm.weight"],
            "out_proj.weight": tensors["out_proj.weight"],
        }

    ours = Mixer(config)
    ours.load_state_dict(ours_of(theirs.state_dict()))
    x = torch.randn(2, 50, C)
    outputs, gradients = [], []
    for layer, arguments in ((theirs, ()), (ours, (None,))):
        leaf = x.clone().requires_grad_()
        y = layer(leaf, *arguments)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        outputs.append(y.detach())
        gradients.append({"x": leaf.grad, **{name: p.grad for name, p in layer.named_parameters()}})
    assert outputs[0].std() > 0.1
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    expected = {"x": gradients[0]["x"], **ours_of(gradients[0])}
    assert expected.keys() == gradients[1].keys()
    for name, gradient in expected.items():
        difference = (gradients[1][name] - gradient).abs().max()
        assert difference < 1e-4 * gradient.abs().max(), name


def test_published_size_has_1309295488_parameters_as_transformers_has() -> None:
    gated_deltanet = archbench.load("gated-deltanet")
    with torch.device("meta"):
        ours, theirs = gated_deltanet.build(gated_deltanet.config("paper")), published_model()
    theirs.tie_weights()
    assert parameter_count(ours) == 1_309_295_488
    assert parameter_count(theirs) == 1_309_295_488


def test_initial_weights_have_the_published_distribution() -> None:
    torch.manual_seed(0)
    gated_deltanet = archbench.load("gated-deltanet")
    model = gated_deltanet.build(
        gated_deltanet.config("paper", n_layer=8, n_head=128, d_head=8, d_value=8, d_model=400, d_ff=800)
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name == "embedding.weight":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.01)
        elif name.endswith("A_log"):
            rates = parameter.exp()
            assert 0 <= rates.min() < 1 < 15 < rates.max() < 16
        elif name.endswith("dt_bias"):
            steps = F.softplus(parameter)
            assert 0.001 <= steps.min() < 0.0015 < 0.08 < steps.max() <= 0.1001
            assert steps.log().mean().item() == pytest.approx(math.log(0.01), abs=0.4)
        else:
            bound = 1 / math.sqrt(4 if "conv" in name else parameter.shape[1])
            bound /= math.sqrt(2 * 8) if "down" in name else 1
            assert parameter.abs().max().item() == pytest.approx(bound, rel=0.01), name
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name


def test_flops_and_state_bytes_are_what_the_docs_say() -> None:
    gated_deltanet = archbench.load("gated-deltanet")
    c: Any = gated_deltanet.config("nano")
    with torch.device("meta"):
        model = gated_deltanet.build(c)
    H, D, M, C, Q = c.n_head, c.d_head, c.d_value, c.d_model, 32
    matrices = C * (2 * H * (D + M + 1)) + H * M * C + 3 * C * c.d_ff
    inverse = 4 * sum(row * row for row in range(1, 8)) + 2 * 2 * 8**3 + 2 * 16**3
    recurrence = H * (2 * Q * (D + M) + 3 * D * M + inverse / Q)
    expected = 2 * (c.n_layer * (matrices + recurrence) + c.vocab_size * C)
    assert count_flops(model, 2, c.context_length).forward_per_token == pytest.approx(expected, rel=1e-9)
    for capacity in (1, 128):
        assert cache_bytes(model, 5, capacity) == 5 * c.n_layer * 4 * H * (D * M + 3 * (2 * D + M))


FLASH_LINEAR_ATTENTION: dict[str, Any] = {
    "allow_neg_eigval": False, "attn": None, "attn_mode": "chunk", "bos_token_id": 1, "conv_size": 4, "eos_token_id": 2,
    "expand_v": 2.0, "fuse_norm": True, "head_dim": 256, "hidden_act": "swish", "hidden_ratio": 4, "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": None, "max_position_embeddings": 2048,
    "model_type": "gated_deltanet", "norm_eps": 1e-06, "num_heads": 6, "num_hidden_layers": 21, "num_v_heads": None,
    "tie_word_embeddings": False, "use_gate": True, "use_short_conv": True, "vocab_size": 32000,
}  # fmt: skip
"""As flash-linear-attention 0.6 saves its GatedDeltaNetConfig(), but for what sets only the speed."""


def test_flash_linear_attentions_configuration_gives_a_model_of_its_1387348732_parameters() -> None:
    gated_deltanet = archbench.load("gated-deltanet")
    config: Any = gated_deltanet.import_config(FLASH_LINEAR_ATTENTION)
    assert (config.d_ff, config.d_value, config.norm_eps) == (5632, 512, 1e-6)
    with torch.device("meta"):
        model = gated_deltanet.build(config)
    assert parameter_count(model) == 1_387_348_732
    wide = gated_deltanet.import_config({**FLASH_LINEAR_ATTENTION, "intermediate_size": 999, "num_v_heads": 6})
    assert wide == config.override(d_ff=999)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allow_neg_eigval", True),
        ("num_v_heads", 12),
        ("use_gate", False),
        ("use_short_conv", False),
        ("attn", {"layers": [1], "num_heads": 8}),
        ("model_type", "qwen3_next"),
    ],
)
def test_published_variants_that_this_is_not_are_refused(field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"field {field}"):
        archbench.load("gated-deltanet").import_config({**FLASH_LINEAR_ATTENTION, field: value})
