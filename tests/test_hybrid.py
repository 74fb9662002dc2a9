"""Griffin is the published RecurrentGemma, and reads past its window from a cache as in whole passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from archbench_plugins.hybrid import HybridCache, Recurrence
from torch import Tensor, nn

import archbench
from archbench.errors import CheckpointError, ConfigError
from archbench.kernels import attention_backend, rotate
from archbench.nn import RGLRU, RotaryAttention
from archbench.nn.rg_lru import BlockLinear
from archbench.protocols import LinearHeadModel
from parity import assert_same_gradients, logits_and_gradients, parameter_count

transformers = pytest.importorskip("transformers")

V, T, W = 503, 80, 13
SIZES: dict[str, Any] = {
    "vocab_size": V, "context_length": T, "n_layer": 5, "n_head": 4, "window": W, "d_model": 96, "d_recurrent": 128,
    "d_ff": 160,
}  # fmt: skip


def configured(preset: str = "paper", **sizes: Any) -> Any:
    return archbench.load("hybrid").config(preset, **sizes)


def randomised(model: nn.Module, std: float = 0.2) -> nn.Module:
    """Every parameter, biases, gains and decays included, so that none can be forgotten or mixed up unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def our_model(**sizes: Any) -> Any:
    return randomised(archbench.load("hybrid").build(configured(**{**SIZES, **sizes})))


def published_model(config: Any) -> Any:
    theirs = transformers.RecurrentGemmaConfig(
        vocab_size=config.vocab_size,
        num_hidden_layers=config.n_layer,
        hidden_size=config.d_model,
        intermediate_size=2 * config.d_ff,  # of which it takes half, as in the published config.json
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        lru_width=config.d_recurrent,
        attention_window_size=config.window,
        pad_token_id=None,  # whose embedding would get no gradient
    )
    return transformers.RecurrentGemmaForCausalLM(theirs)


def both_models(**sizes: Any) -> tuple[Any, Any]:
    """Theirs, every parameter randomised, and ours with its weights through the plugin's hook."""
    hybrid, config = archbench.load("hybrid"), configured(**{**SIZES, **sizes})
    theirs = randomised(published_model(config))
    ours = hybrid.build(config).eval()
    ours.load_state_dict(hybrid.import_weights(theirs.state_dict(), config))
    return theirs, ours


def some_tokens(B: int, length: int) -> Tensor:
    return torch.randint(V, (B, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("sizes", [{}, {"n_kv_head": 2, "d_recurrent": 64, "n_layer": 3}])
def test_logits_and_gradients_equal_transformers(backend: str, sizes: dict[str, int]) -> None:
    theirs, ours = both_models(**sizes)
    tokens = some_tokens(3, T + 1)
    expected, their_gradients = logits_and_gradients(theirs, tokens)
    with attention_backend(backend):
        logits, our_gradients = logits_and_gradients(ours, tokens)
    assert expected.std() > 1
    assert (logits - expected).abs().max() < 1e-4
    mapped = archbench.load("hybrid").import_weights(their_gradients, ours.config)
    assert_same_gradients(our_gradients, mapped, atol=1e-5)


@torch.inference_mode()
def test_decoding_past_the_window_equals_transformers() -> None:
    theirs, ours = both_models()
    tokens, prompt = some_tokens(2, T), 5
    cache = ours.new_cache(2, T)
    logits = [ours.extend(tokens[:, :prompt], cache)]
    past = transformers.DynamicCache(config=theirs.config)
    expected = [theirs(tokens[:, :prompt], use_cache=True, cache=past).logits[:, -1]]
    for t in range(prompt, T):
        logits.append(ours.extend(tokens[:, t : t + 1], cache))
        expected.append(theirs(tokens[:, t : t + 1], use_cache=True, cache=past).logits[:, -1])
    assert T > 4 * W
    assert (torch.stack(logits) - torch.stack(expected)).abs().max() < 1e-4


def test_published_size_has_2682862080_parameters_as_transformers_has() -> None:
    hybrid = archbench.load("hybrid")
    with torch.device("meta"):
        ours, theirs = hybrid.build(configured()), published_model(configured())
    assert parameter_count(ours) == 2_682_862_080
    assert parameter_count(theirs) == 2_682_862_080
    kinds = ["a" if "Attention" in type(layer.temporal_block).__name__ else "r" for layer in theirs.model.layers]
    assert "".join(kinds) == ours.config.mixers


CHUNKS = [[1] * T, [3] * 26 + [2], [W - 1] * 6 + [8], [W] * 6 + [2], [W + 1] * 5 + [10], [2 * W + 3, 2 * W + 3, 22],
          [T - 1, 1], [1, 50, 1, 1, 20, 7], [T]]  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("sizes", CHUNKS, ids=lambda sizes: "-".join(map(str, sizes[:4])))
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_reading_in_chunks_smaller_and_larger_than_the_window_equals_a_whole_pass(
    sizes: list[int], backend: str
) -> None:
    model, tokens = our_model(), some_tokens(2, T)
    assert sum(sizes) == T
    with attention_backend(backend):
        whole = model(tokens)
        cache = model.new_cache(2, T)
        read = 0
        for chunk in tokens.split(sizes, dim=1):
            states = model.hidden(chunk, cache)  # every position's, not the last one's only
            cache.advance(chunk.shape[1])
            logits = model.head(states)
            expected = whole[:, read : read + chunk.shape[1]]
            read += chunk.shape[1]
            torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    assert cache.length == cache.attention.length == cache.recurrence.length == T


def test_attention_sees_w_positions_its_own_included() -> None:
    model = our_model(pattern="a", n_layer=1)
    x = model.embedding(some_tokens(1, T)).detach().requires_grad_()
    y = model.blocks[0](x, model.rotary(0, T), None)
    (gradient,) = torch.autograd.grad(y[0, 50].square().sum(), x)
    seen = gradient[0].abs().sum(-1).nonzero().flatten()
    assert seen.tolist() == list(range(50 - W + 1, 51))


def test_attention_depends_on_distances_and_not_on_positions() -> None:
    # With keys turned by anything but their own position, as from a ring of wrong offsets, this would not hold.
    model = our_model(pattern="a", n_layer=1)
    x = torch.randn(1, T, model.config.d_model)
    early, late = (model.blocks[0](x[:, :30], model.rotary(start, start + 30), None) for start in (0, 50))
    torch.testing.assert_close(early, late, atol=1e-4, rtol=0)
    still = model.blocks[0](x[:, :30], (torch.ones(30, 6), torch.zeros(30, 6)), None)
    assert (early - still).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_grows_up_to_the_window_and_recurrent_states_are_float32(dtype: torch.dtype) -> None:
    model = our_model().to(dtype)
    c, B = model.config, 3
    bytes_of = {
        capacity: sum(tensor.nbytes for tensor in model.new_cache(B, capacity).tensors()) for capacity in (5, W, T)
    }
    attention, recurrent = c.mixers.count("a"), c.mixers.count("r")
    assert (attention, recurrent) == (1, 4)
    item = dtype.itemsize
    states = recurrent * B * c.d_recurrent * ((c.d_conv - 1) * item + 4)
    position = attention * B * 2 * c.n_kv_head * (c.d_model // c.n_head) * item
    assert bytes_of == {5: states + 5 * position, W: states + W * position, T: states + W * position}
    cache: HybridCache = model.new_cache(B, T)
    with torch.inference_mode():
        model.extend(some_tokens(B, 30), cache)
    for convolution, state in cache.recurrence.layers:
        assert (convolution.dtype, state.dtype) == (dtype, torch.float32)
        assert state.any()


@torch.inference_mode()
def test_a_second_text_starts_from_nothing() -> None:
    model, tokens = our_model(), some_tokens(2, 20)
    first = model.extend(tokens, model.new_cache(2, T))
    assert torch.equal(model.extend(tokens, model.new_cache(2, T)), first)


def recurrence_by_hand(unit: RGLRU, x: Tensor, state: Tensor | None) -> Tensor:
    """Equations 1 to 4 of the paper (section 2.4), a position at a time; the published code's first position."""
    blocks = [torch.block_diag(*gate.weight) for gate in (unit.input_gate, unit.recurrence_gate)]
    h, states = torch.zeros_like(x[:, 0]) if state is None else state, []
    for t in range(x.shape[1]):
        i = torch.sigmoid(x[:, t] @ blocks[0] + unit.input_gate.bias.flatten())
        r = torch.sigmoid(x[:, t] @ blocks[1] + unit.recurrence_gate.bias.flatten())
        a = torch.sigmoid(-unit.decay) ** (8 * r)  # the paper's Λ is minus the published code's
        scale = torch.ones_like(a) if t == 0 and state is None else (1 - a**2).sqrt()
        h = a * h + scale * i * x[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


def test_the_recurrent_unit_is_the_papers() -> None:
    unit = randomised(RGLRU(24, 3), std=0.5).double()
    x = torch.randn(2, 50, 24, dtype=torch.float64, requires_grad=True)
    found, expected = unit(x, None, first=True), recurrence_by_hand(unit, x, None)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    weights, given = torch.randn_like(x), [x, *unit.parameters()]
    gradients = [torch.autograd.grad((output * weights).sum(), given) for output in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 50])
def test_the_recurrent_unit_goes_on_from_a_state_and_leaves_one(length: int) -> None:
    unit = randomised(RGLRU(24, 3), std=0.5).double()
    x, state = torch.randn(2, length, 24, dtype=torch.float64), torch.randn(2, 24, dtype=torch.float64)
    expected = recurrence_by_hand(unit, x, state)
    found = unit(x, state, first=False)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    assert torch.equal(state, found[:, -1])


def test_a_closed_recurrence_gate_has_finite_gradients() -> None:
    # Then a = 1 and √(1 - a²) = 0, where the derivative of the root is infinite.
    unit = RGLRU(24, 3)
    with torch.no_grad():
        unit.recurrence_gate.bias.fill_(-200.0)
    x = torch.randn(2, 40, 24, requires_grad=True)
    unit(x, None, first=True).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *unit.parameters()))


def test_gates_are_block_diagonal() -> None:
    gate = randomised(BlockLinear(24, 3))
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(gate(x), x @ torch.block_diag(*gate.weight) + gate.bias.flatten())


@pytest.mark.parametrize("R", [4, 10, 16])
def test_rotation_of_some_channels_leaves_the_others(R: int) -> None:
    B, H, D = 2, 3, 16
    angles = torch.rand(9, R // 2) * 6
    x = torch.randn(B, 9, H, D, requires_grad=True)
    turned = torch.view_as_complex(torch.stack([x[..., : R // 2], x[..., R // 2 : R]], -1))
    turned = torch.view_as_real(turned * torch.polar(torch.ones_like(angles), angles)[:, None])
    expected = torch.cat([turned[..., 0], turned[..., 1], x[..., R:]], -1)
    found = rotate(x, angles.cos(), angles.sin())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(rotate(x.detach(), angles.cos(), angles.sin()), expected)  # without gradients
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_logits_are_capped_in_training_too() -> None:
    model = our_model(logit_cap=2.0)
    plain = our_model(logit_cap=0.0)
    tokens = some_tokens(2, 20)
    logits = model(tokens)
    assert plain(tokens).abs().max() > 4
    assert logits.abs().max() < 2
    torch.testing.assert_close(logits, 2 * torch.tanh(plain(tokens) / 2))
    assert not isinstance(model, LinearHeadModel)  # or its loss would be taken from logits without the cap


def test_initial_weights_have_the_published_distribution() -> None:
    torch.manual_seed(0)
    L, C, H, R = 3, 640, 10, 960
    sizes = {"d_model": C, "n_head": H, "d_recurrent": R, "d_ff": 480, "n_layer": L, "vocab_size": 1000}
    model = archbench.load("hybrid").build(configured(**sizes))
    for name, parameter in model.named_parameters():
        if name.endswith("decay"):
            a = torch.exp(-F.softplus(parameter))
            assert 0.9 <= a.min() < 0.902, name
            assert 0.998 < a.max() <= 0.999, name
            assert a.square().mean().item() == pytest.approx((0.9**2 + 0.999**2) / 2, abs=5e-3), name
        elif "norm" in name or name.endswith("bias"):
            assert not parameter.any(), name
        else:
            added = name.endswith(("join.weight", "mixer.out.weight", "down.weight"))
            inputs = R // H if "_gate." in name else parameter.shape[1]
            std = math.sqrt(2 / (L * inputs)) if added else math.sqrt(1 / inputs)
            if "convolution" in name:
                std = math.sqrt(0.01 / 4)
            if "embedding" in name:
                std = 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.02), name


def test_embeddings_at_the_published_width_are_the_published_ones() -> None:
    torch.manual_seed(0)
    model: Any = archbench.load("hybrid").build(configured(n_layer=1, vocab_size=500, d_ff=1, d_recurrent=10))
    assert model.embedding.weight.std().item() == pytest.approx(2560**-0.5, rel=2e-3)
    assert model.scale == 50.5  # √2560 = 50.596 in bfloat16


@pytest.mark.parametrize(("pattern", "mixers"), [("rra", "rrarr"), ("r", "rrrrr"), ("a", "aaaaa"), ("ar", "arara")])
def test_the_interleave_is_the_one_stated(pattern: str, mixers: str) -> None:
    model = our_model(pattern=pattern)
    assert [type(block.mixer) for block in model.blocks] == [{"r": Recurrence, "a": RotaryAttention}[m] for m in mixers]
    tokens = some_tokens(1, 40)
    cache = model.new_cache(1, 40)
    with torch.inference_mode():
        for chunk in tokens.split([17, 1, 1, 21], dim=1):
            logits = model.extend(chunk, cache)
        torch.testing.assert_close(logits, model(tokens)[:, -1], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("sizes", "culprit"),
    [({"n_head": 5}, "d_model"), ({"d_recurrent": 130}, "d_recurrent"), ({"pattern": "rrx"}, "pattern")],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ConfigError, match=culprit):
        configured(**{**SIZES, **sizes})


def test_weights_of_another_interleave_are_refused() -> None:
    theirs, ours = both_models()
    other = configured(**{**SIZES, "pattern": "r"})
    with pytest.raises(CheckpointError, match=r"layers\.2\.temporal_block"):
        archbench.load("hybrid").import_weights(theirs.state_dict(), other)
    untied = {**theirs.state_dict(), "lm_head.weight": torch.zeros(V, 96)}
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        archbench.load("hybrid").import_weights(untied, ours.config)
