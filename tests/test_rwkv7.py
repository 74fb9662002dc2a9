"""RWKV-7 is the published model: the package ``rwkv`` agrees in logits and gradients, and so do its equations."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench.errors import CheckpointError, ConfigError

RWKV7 = archbench.load("rwkv7")
SIZES = {
    "vocab_size": 101, "context_length": 64, "n_layer": 3, "d_model": 96, "d_head": 32, "d_ff": 160,
    "decay_rank": 8, "rate_rank": 12, "value_rank": 20, "gate_rank": 28,
}  # fmt: skip


def published_weights(layers: int = 3, *, vectors: tuple[int, ...] = (1, 1)) -> dict[str, Tensor]:
    """A checkpoint by the published names and shapes, every tensor N(0, 0.3), gains 1 ± 0.3; float64."""
    V, C, D, F_ = (SIZES[name] for name in ("vocab_size", "d_model", "d_head", "d_ff"))
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (V, C), "head.weight": (V, C)}
    norms = ["ln_out", "blocks.0.ln0"]
    for i in range(layers):
        att, ffn = f"blocks.{i}.att", f"blocks.{i}.ffn"
        norms += [f"blocks.{i}.ln1", f"blocks.{i}.ln2", f"{att}.ln_x"]
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "w0", "a0") + (("v0",) if i else ()):
            shapes[f"{att}.{name}"] = (*vectors, C)
        for letter, kind in (("w", "decay"), ("a", "rate"), ("v", "value"), ("g", "gate")):
            if i or letter != "v":
                rank = SIZES[f"{kind}_rank"]
                shapes |= {f"{att}.{letter}1": (C, rank), f"{att}.{letter}2": (rank, C)}
        shapes[f"{att}.r_k"] = (C // D, D)
        shapes |= {f"{att}.{name}.weight": (C, C) for name in ("receptance", "key", "value", "output")}
        shapes |= {f"{ffn}.x_k": (*vectors, C), f"{ffn}.key.weight": (F_, C), f"{ffn}.value.weight": (C, F_)}
    shapes |= {f"{norm}.{part}": (C,) for norm in norms for part in ("weight", "bias")}
    torch.manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for norm in norms:
        weights[f"{norm}.weight"] += 1
    return weights


def equations(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits (T, V) for tokens (T,), a position at a time: section 4 of the paper, with its names."""
    H, D = weights["blocks.0.att.r_k"].shape
    C, L = H * D, 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    states = [torch.zeros(H, D, D, dtype=torch.float64)] * L  # values by keys
    last_att = [torch.zeros(C, dtype=torch.float64)] * L
    last_ffn = [torch.zeros(C, dtype=torch.float64)] * L

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (C,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    logits = []
    for token in tokens:
        x = norm(weights["emb.weight"][token], "blocks.0.ln0")
        v_first = None
        for i in range(L):
            p = {name.removeprefix(f"blocks.{i}.att."): tensor for name, tensor in weights.items()}
            p = {name: tensor.flatten() if tensor.dim() == 3 else tensor for name, tensor in p.items()}
            now = norm(x, f"blocks.{i}.ln1")
            shift, last_att[i] = last_att[i] - now, now
            x_r, x_w, x_k, x_v, x_a, x_g = (now + shift * p[f"x_{letter}"] for letter in "rwkvag")
            r, k, v = (p[f"{name}.weight"] @ x_ for name, x_ in (("receptance", x_r), ("key", x_k), ("value", x_v)))
            if v_first is None:
                v_first = v
            else:
                v = torch.lerp(v, v_first, torch.sigmoid(p["v0"] + x_v @ p["v1"] @ p["v2"]))
            d = p["w0"] + torch.tanh(x_w @ p["w1"]) @ p["w2"]
            w = torch.exp(-math.exp(-0.5) * torch.sigmoid(d))
            a = torch.sigmoid(p["a0"] + x_a @ p["a1"] @ p["a2"])
            g = torch.sigmoid(x_g @ p["g1"]) @ p["g2"]
            kappa = (k * p["k_k"]).view(H, D)
            kappa = kappa / kappa.norm(dim=-1, keepdim=True)
            k = k * torch.lerp(torch.ones_like(a), a, p["k_a"])
            y = []
            new = []
            for h in range(H):
                of = slice(h * D, (h + 1) * D)
                transition = torch.diag(w[of]) - torch.outer(kappa[h], a[of] * kappa[h])
                S = states[i][h] @ transition + torch.outer(v[of], k[of])
                o = S @ r[of]
                o = (o - o.mean()) / torch.sqrt(o.var(unbiased=False) + 64e-5)
                o = o * p["ln_x.weight"][of] + p["ln_x.bias"][of]
                y.append(o + (r[of] * p["r_k"][h] * k[of]).sum() * v[of])
                new.append(S)
            states[i] = torch.stack(new)
            x = x + p["output.weight"] @ (g * torch.cat(y))
            now = norm(x, f"blocks.{i}.ln2")
            shift, last_ffn[i] = last_ffn[i] - now, now
            mixed = now + shift * weights[f"blocks.{i}.ffn.x_k"].flatten()
            hidden = torch.relu(weights[f"blocks.{i}.ffn.key.weight"] @ mixed) ** 2
            x = x + weights[f"blocks.{i}.ffn.value.weight"] @ hidden
        logits.append(weights["head.weight"] @ norm(x, "ln_out"))
    return torch.stack(logits)


def our_model(weights: dict[str, Tensor], **sizes: int) -> nn.Module:
    """Ours, with published weights through the plugin's hook."""
    config = RWKV7.config("paper", **{**SIZES, **sizes})
    model = RWKV7.build(config)
    model.load_state_dict(RWKV7.import_weights({name: w.float() for name, w in weights.items()}, config))
    return model


@pytest.fixture(scope="module")
def chatrwkv() -> Iterator[Any]:
    """``rwkv.model``, the published inference code; it reads its settings from the environment when it is imported."""
    pytest.importorskip("rwkv")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RWKV_V7_ON", "1"), ("RWKV_JIT_ON", "0"), ("RWKV_CUDA_ON", "0")):
            patch.setenv(name, value)
        yield importlib.import_module("rwkv.model")


def test_logits_equal_the_published_codes_whole_and_token_by_token(chatrwkv: Any, tmp_path: Path) -> None:
    weights = published_weights()
    torch.save({name: tensor.float() for name, tensor in weights.items()}, tmp_path / "model.pth")
    theirs, ours = chatrwkv.RWKV_x070(str(tmp_path / "model"), strategy="cpu fp32"), our_model(weights)
    tokens = torch.randint(SIZES["vocab_size"], (50,))
    with torch.no_grad():
        logits = ours(tokens[None])[0]
        cache = ours.new_cache(1, 50)
        steps = [ours.extend(token.view(1, 1), cache)[0] for token in tokens]

    whole, _ = theirs.forward(tokens.tolist(), None, full_output=True)
    assert (logits - whole).abs().max() < 1e-4
    state = None
    for token, step in zip(tokens.tolist(), steps, strict=True):
        expected, state = theirs.forward(token, state)
        assert (step - expected).abs().max() < 1e-4


def test_an_export_is_what_the_published_code_reads(chatrwkv: Any, tmp_path: Path) -> None:
    ours = our_model(published_weights())
    exported = RWKV7.export_weights(ours.state_dict(), ours.config)
    shapes = {name: (*tensor.shape,) for name, tensor in published_weights().items()}
    assert {name: (*tensor.shape,) for name, tensor in exported.items()} == shapes
    torch.save({name: tensor.clone() for name, tensor in exported.items()}, tmp_path / "model.pth")
    theirs = chatrwkv.RWKV_x070(str(tmp_path / "model"), strategy="cpu fp32")
    tokens = torch.randint(SIZES["vocab_size"], (30,))
    with torch.no_grad():
        expected = ours(tokens[None])[0]
    assert (theirs.forward(tokens.tolist(), None, full_output=True)[0] - expected).abs().max() < 1e-4


def chatrwkv_layers(chatrwkv: Any, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits (T, V) for tokens (T,) by the package's functions for one token of a layer, which have gradients."""
    H, D = weights["blocks.0.att.r_k"].shape
    C, L = H * D, 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    z = {name: tensor.squeeze() for name, tensor in weights.items()}
    z |= {f"blocks.0.att.v{digit}": torch.empty(0) for digit in range(3)}  # actually ignored, as the package says
    last_att, last_ffn = [torch.zeros(C)] * L, [torch.zeros(C)] * L
    states = [torch.zeros(H, D, D)] * L
    order = [f"x_{letter}" for letter in "rwkvag"]
    order += [f"{letter}{digit}" for letter in "wav" for digit in range(3)] + ["g1", "g2", "k_k", "k_a"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (C,), z[f"{name}.weight"], z[f"{name}.bias"])

    logits = []
    for token in tokens:
        x = norm(z["emb.weight"][token], "blocks.0.ln0")
        v_first = torch.empty_like(x)
        for i in range(L):
            att, ffn = f"blocks.{i}.att", f"blocks.{i}.ffn"
            matrices = [z[f"{att}.{name}.weight"].t() for name in ("receptance", "key", "value", "output")]
            y, last_att[i], states[i], v_first = chatrwkv.RWKV_x070_TMix_one(
                i, H, D, norm(x, f"blocks.{i}.ln1"), last_att[i], v_first, states[i],
                *(z[f"{att}.{name}"] for name in order), z[f"{att}.r_k"].flatten(), *matrices,
                z[f"{att}.ln_x.weight"], z[f"{att}.ln_x.bias"],
            )  # fmt: skip
            x = x + y
            y, last_ffn[i] = chatrwkv.RWKV_x070_CMix_one(
                norm(x, f"blocks.{i}.ln2"), last_ffn[i], z[f"{ffn}.x_k"],
                z[f"{ffn}.key.weight"].t(), z[f"{ffn}.value.weight"].t(),
            )  # fmt: skip
            x = x + y
        logits.append(norm(x, "ln_out") @ z["head.weight"].t())
    return torch.stack(logits)


def assert_same_logits_and_gradients(
    theirs: Callable[[dict[str, Tensor], Tensor], Tensor], dtype: torch.dtype, tolerance: float
) -> None:
    weights = {name: tensor.to(dtype).requires_grad_() for name, tensor in published_weights().items()}
    tokens = torch.randint(SIZES["vocab_size"], (41,))
    expected = theirs(weights, tokens[:-1])
    F.cross_entropy(expected, tokens[1:]).backward()

    ours = our_model(weights)
    logits = ours(tokens[None, :-1])[0]
    F.cross_entropy(logits, tokens[1:]).backward()

    assert (logits - expected).abs().max() < 1e-4
    gradients = {name: tensor.grad for name, tensor in weights.items() if tensor.grad is not None}
    mapped = RWKV7.import_weights(gradients, RWKV7.config("paper", **SIZES))
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert mapped.keys() == found.keys()
    for name, gradient in mapped.items():
        torch.testing.assert_close(
            found[name], gradient.float(), atol=tolerance, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert found[name].norm().item() == pytest.approx(gradient.norm().item(), rel=tolerance), name


def test_logits_and_gradients_equal_those_of_the_published_layers(chatrwkv: Any) -> None:
    # Their rounding: a position at a time in float32, and exp(-1/2) as 0.606531.
    assert_same_logits_and_gradients(partial(chatrwkv_layers, chatrwkv), torch.float32, tolerance=1e-4)


def test_logits_and_gradients_equal_the_papers_equations_in_float64() -> None:
    assert_same_logits_and_gradients(equations, torch.float64, tolerance=1e-5)


@pytest.mark.parametrize("pieces", [(64,), (1, 63), (33, 31), (5, 1, 1, 40, 17)])
def test_a_prompt_read_in_pieces_gives_the_same_logits(pieces: tuple[int, ...]) -> None:
    ours = our_model(published_weights())
    tokens = torch.randint(SIZES["vocab_size"], (2, 64))
    with torch.no_grad():
        expected = ours(tokens)
        cache = ours.new_cache(2, 64)
        position = 0
        for piece in tokens.split(pieces, dim=1):
            position += piece.shape[1]
            assert (ours.extend(piece, cache) - expected[:, position - 1]).abs().max() < 1e-4


def test_the_cache_is_of_fixed_size_and_its_states_are_float32_in_bfloat16_too() -> None:
    model = RWKV7.build(RWKV7.config("nano")).bfloat16()
    L, B, C, D = 2, 3, model.config.d_model, model.config.d_head
    for capacity in (1, 128):
        tensors = model.new_cache(B, capacity).tensors()
        assert sum(tensor.nbytes for tensor in tensors) == L * B * (4 * C * D + 2 * 2 * C)
    cache = model.new_cache(B, 128)
    addresses = [tensor.data_ptr() for tensor in cache.tensors()]
    model.extend(torch.zeros(B, 40, dtype=torch.int64), cache)
    model.extend(torch.zeros(B, 1, dtype=torch.int64), cache)
    assert [tensor.data_ptr() for tensor in cache.tensors()] == addresses
    assert all(state.dtype == torch.float32 and state.any() for _, state, _ in cache.layers)


# World 0.1B (the abstract's 0.19 billion), 0.4B and 1.5B with the ranks of their checkpoints; the last number is what
# conversions of the 1.5B checkpoint report.
@pytest.mark.parametrize(
    ("layers", "width", "ranks", "count"),
    [
        (12, 768, (64, 64, 32, 128), 191_034_624),
        (24, 1024, (64, 64, 32, 128), 450_767_872),
        (24, 2048, (96, 96, 64, 256), 1_527_404_544),
    ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(
    layers: int, width: int, ranks: tuple[int, ...], count: int
) -> None:
    names = ("decay_rank", "rate_rank", "value_rank", "gate_rank")
    sizes = dict(zip(names, ranks, strict=True), n_layer=layers, d_model=width, d_ff=4 * width)
    config = RWKV7.config("paper", **sizes)
    assert (config == RWKV7.config("paper")) == (count == 191_034_624)
    with torch.device("meta"):
        model = RWKV7.build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    V, L, C = config.vocab_size, layers, width
    formula = 2 * V * C + 4 * C + L * C * (12 * C + 2 * sum(ranks) + 19) - (2 * C * ranks[2] + C)
    assert formula == count


@pytest.mark.parametrize("preset", ["nano", "small", "paper"])
def test_presets_have_the_widths_that_the_training_code_suggests(preset: str) -> None:
    config: Any = RWKV7.config(preset)
    for name, factor in (("decay", 2.5), ("rate", 2.5), ("value", 1.7), ("gate", 5)):
        suggested = max(32, round(factor * config.d_model**0.5 / 32) * 32)
        assert getattr(config, f"{name}_rank") == suggested, name


def test_initial_weights_are_the_published_ones() -> None:
    torch.manual_seed(0)
    C, D, L = 128, 32, 3
    model = RWKV7.build(RWKV7.config("paper", vocab_size=512, d_model=C, d_head=D, d_ff=512, n_layer=L))

    def assert_orthogonal(weight: Tensor, gain: float) -> None:
        narrow = weight.t() if weight.shape[0] > weight.shape[1] else weight
        torch.testing.assert_close(narrow @ narrow.t(), gain**2 * torch.eye(len(narrow)), atol=1e-5, rtol=0)

    assert_orthogonal(model.output.weight, 0.5 * math.sqrt(512 / C))
    assert model.embedding.weight.abs().max() <= 1e-4
    assert model.embedding.weight.std().item() == pytest.approx(1e-4 / math.sqrt(3), rel=0.02)
    for layer, block in enumerate(model.blocks):
        t, f = block.time_mixing, block.channel_mixing
        for n in range(C):  # channel by channel, as the published code has it
            linear = n / (C - 1) - 0.5
            zigzag = ((n % D) - ((D - 1) / 2)) / ((D - 1) / 2)
            zigzag *= abs(zigzag)
            www = -6 + 6 * (n / (C - 1)) ** (1 + (layer / (L - 1)) ** 0.3)
            rest = 1 - layer / L
            expected = {
                t.x_r: 1 - (n / C) ** (0.2 * rest), t.x_w: 1 - (n / C) ** (0.9 * rest),
                t.x_k: 1 - (n / C) ** (0.7 * rest), t.x_v: 1 - (n / C) ** (0.7 * rest),
                t.x_a: 1 - (n / C) ** (0.9 * rest), t.x_g: 1 - (n / C) ** (0.2 * rest),
                f.x_k: 1 - (n / C) ** rest**4,
                t.decay.bias: www + 0.5 + zigzag * 2.5, t.rate.bias: -0.19 + zigzag * 0.3 + linear * 0.4,
                t.k_k: 0.71 - linear * 0.1, t.k_a: 1.02, t.r_k: -0.04,
                t.norm_weight: ((1 + layer) / L) ** 0.7, t.norm_bias: 0.0,
            }  # fmt: skip
            if layer:
                expected[t.first_value.bias] = 0.73 - linear * 0.4
            for parameter, value in expected.items():
                assert parameter[n].item() == pytest.approx(value, abs=2e-6)
        for low_rank in filter(None, (t.decay, t.rate, t.first_value, t.gate)):
            assert not low_rank.down.weight.any()
            assert_orthogonal(low_rank.up.weight, 0.1)
        assert not t.output.weight.any()
        assert not f.value.weight.any()
        for matrix, gain in ((t.receptance, 1.0), (t.key, 0.1), (t.value, 1.0), (f.key, 1.0)):
            assert_orthogonal(matrix.weight, gain)


def test_a_single_layer_has_initial_weights() -> None:
    model = RWKV7.build(RWKV7.config("nano", n_layer=1))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_checkpoints_may_carry_what_layer_0_does_not_use() -> None:
    weights = published_weights(vectors=())  # and some have vectors as vectors
    tokens = torch.randint(SIZES["vocab_size"], (1, 20))
    expected = our_model(published_weights())(tokens)
    for digit in range(3):
        weights[f"blocks.0.att.v{digit}"] = torch.full((1, 1, 96), math.nan)
    assert torch.equal(our_model(weights)(tokens), expected)


def test_weights_that_do_not_fit_are_named() -> None:
    weights = published_weights()
    missing = dict(weights)
    del missing["blocks.1.att.v1"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.v1.*missing"):
        our_model(missing)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.att\.w1.*\(8, 96\).*\(9, 96\)"):
        our_model(weights, decay_rank=9)
    with pytest.raises(CheckpointError, match=r"no such tensor"):
        our_model(weights | {"blocks.3.att.x_r": weights["blocks.2.att.x_r"]})


def test_heads_that_do_not_share_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"64 channels.*160"):
        RWKV7.config("nano", d_head=64)
