"""RWKV-7 "Goose" (Peng et al. 2025): a recurrent network whose state each token decays, corrects and adds to.

Paper: RWKV-7 "Goose" with Expressive Dynamic State Evolution (arXiv:2503.14456), section 4; the recurrence is in
archbench/kernels/recurrence/wkv7.py. Published code: BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py, and the package
``rwkv``, with whose RWKV_x070 logits are compared. What differs from them: docs/architectures.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.errors import ConfigError
from archbench.kernels.recurrence.wkv7 import solve_flops, wkv7, wkv7_step
from archbench.nn import (
    DecoderOnly,
    Linear,
    LowRank,
    StateCache,
    exported_fields,
    exported_weights,
    published_fields,
    published_weights,
    shift_mixer,
)

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch

LayerState = tuple[Tensor, Tensor, Tensor]
"""A layer's: time mixing's last input (B, C), its state (B, H, D, D) in float32, channel mixing's last input (B, C)."""


class RWKV7Config(ModelConfig):
    """Sizes of an RWKV-7; the defaults are those of the published RWKV-7 World 0.1B."""

    vocab_size: int = Field(default=65_536, gt=0, description="V, number of token ids")
    context_length: int = Field(default=4096, gt=0, description="T, positions it is trained on and the most it reads")
    n_layer: int = Field(default=12, gt=0, description="L, blocks")
    d_model: int = Field(default=768, gt=1, description="C, width of the hidden states")
    d_head: int = Field(default=64, gt=1, description="D, width of a head, of which there are H = C / D")
    d_ff: int = Field(default=3072, gt=0, description="F, width of channel mixing")
    decay_rank: int = Field(default=64, gt=0, description="width of the low-rank layer that makes decays")
    rate_rank: int = Field(default=64, gt=0, description="width of the one that makes in-context learning rates")
    value_rank: int = Field(default=32, gt=0, description="width of the one that mixes in the first layer's values")
    gate_rank: int = Field(default=128, gt=0, description="width of the one that makes gates")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.d_model % self.d_head:
            cause = f"heads of {self.d_head} channels do not divide d_model = {self.d_model}"
            raise ConfigError("RWKV7Config.d_head", cause, "Choose one of its divisors")
        return self


class TimeMixing(nn.Module):
    """x (B, T, C) -> (B, T, C), through a state of D × D for each head."""

    def __init__(self, config: RWKV7Config, layer: int) -> None:
        super().__init__()
        c = config
        C, self.d_head = c.d_model, c.d_head
        depth = layer / max(c.n_layer - 1, 1)  # 0 to 1
        ramp = torch.arange(C) / (C - 1)  # 0 to 1 over all channels
        zigzag = (torch.arange(C) % c.d_head) / (c.d_head - 1) * 2 - 1  # -1 to 1 over a head's
        zigzag = zigzag * zigzag.abs()
        powers = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = (initial_mix(c, layer, power) for power in powers)
        self.k_k = nn.Parameter(0.71 - 0.1 * (ramp - 0.5))
        self.k_a = nn.Parameter(torch.full((C,), 1.02))
        self.r_k = nn.Parameter(torch.full((C,), -0.04))
        self.decay = LowRank(C, c.decay_rank, torch.tanh, -5.5 + 6 * ramp ** (1 + depth**0.3) + 2.5 * zigzag)
        self.rate = LowRank(C, c.rate_rank, None, -0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5))
        self.first_value = LowRank(C, c.value_rank, None, 0.73 - 0.4 * (ramp - 0.5)) if layer else None
        self.gate = LowRank(C, c.gate_rank, torch.sigmoid)
        self.receptance, self.key, self.value, self.output = (Linear(C, C, bias=False) for _ in range(4))
        for matrix, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(matrix.weight, gain=gain)
        nn.init.zeros_(self.output.weight)
        self.norm_weight = nn.Parameter(torch.full((C,), ((layer + 1) / c.n_layer) ** 0.7))
        self.norm_bias = nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor, v_first: Tensor | None, state: LayerState | None) -> tuple[Tensor, Tensor]:
        """``v_first`` (B, T, C) are the values of layer 0, which layer 0 itself returns for the others."""
        B, T, _ = x.shape
        mixed = shift_mixer(x, None if state is None else state[0])
        r = self.receptance(mixed(self.x_r))
        w = self.decay(mixed(self.x_w))
        k = self.key(mixed(self.x_k))
        xv = mixed(self.x_v)
        v = self.value(xv)
        if self.first_value is None or v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.first_value(xv))
        a = torch.sigmoid(self.rate(mixed(self.x_a)))  # in-context learning rates, 0 to 1
        g = self.gate(mixed(self.x_g))

        exact = torch.promote_types(x.dtype, torch.float32)
        log_w = -math.exp(-0.5) * torch.sigmoid(w.to(exact))
        removal = F.normalize((k * self.k_k).to(exact).view(B, T, -1, self.d_head), dim=-1)  # κ̂: (B, T, H, D)
        k = k * (1 + (a - 1) * self.k_a)
        r, log_w, k, v, a = (tensor.view(removal.shape) for tensor in (r, log_w, k, v, a))
        y = self.recur(r, log_w, k, v, -removal, removal * a, None if state is None else state[1])
        y = F.layer_norm(y, (self.d_head,), eps=64e-5)  # with weight and bias: GroupNorm, a group for each head
        bonus = (r * k * self.r_k.view(-1, self.d_head)).sum(-1, keepdim=True) * v
        y = y.flatten(2) * self.norm_weight + self.norm_bias + bonus.flatten(2)
        return self.output((y * g).to(x.dtype)), v_first

    def recur(
        self, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
    ) -> Tensor:
        """(B, T, H, D) each -> y (B, T, H, D); ``state`` (B, H, D, D) is overwritten with the state after them."""
        if state is not None and r.shape[1] == 1:
            r, log_w, k, v, a, b = (tensor.squeeze(1) for tensor in (r, log_w, k, v, a, b))
            return wkv7_step(r, log_w, k, v, a, b, state).unsqueeze(1)
        y, after = wkv7(r, log_w, k, v, a, b, state)
        if state is not None:
            state.copy_(after)
        return y


class ChannelMixing(nn.Module):
    """x (B, T, C) -> value(relu(key(x mixed with the position before))²), F wide."""

    def __init__(self, config: RWKV7Config, layer: int) -> None:
        super().__init__()
        self.x_k = initial_mix(config, layer, (1 - layer / config.n_layer) ** 3)
        self.key = Linear(config.d_model, config.d_ff, bias=False)
        self.value = Linear(config.d_ff, config.d_model, bias=False)
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, state: LayerState | None) -> Tensor:
        mixed = shift_mixer(x, None if state is None else state[2])
        return self.value(F.relu(self.key(mixed(self.x_k))).square())


def initial_mix(config: RWKV7Config, layer: int, power: float) -> nn.Parameter:
    """(C,): how much of the position before is mixed in: 1 at the first channel, less at later ones and higher up."""
    C = config.d_model
    return nn.Parameter(1 - (torch.arange(C) / C) ** (power * (1 - layer / config.n_layer)))


class Block(nn.Module):
    """Time mixing and channel mixing, each on a normalised copy of the residual stream and added to it (pre-norm)."""

    def __init__(self, config: RWKV7Config, layer: int) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(config.d_model)
        self.time_mixing = TimeMixing(config, layer)
        self.channel_norm = nn.LayerNorm(config.d_model)
        self.channel_mixing = ChannelMixing(config, layer)

    def forward(self, x: Tensor, v_first: Tensor | None, state: LayerState | None) -> tuple[Tensor, Tensor]:
        y, v_first = self.time_mixing(self.time_norm(x), v_first, state)
        x = x + y
        return x + self.channel_mixing(self.channel_norm(x), state), v_first


class RWKV7(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V)."""

    config: RWKV7Config

    def __init__(self, config: RWKV7Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.embedding_norm = nn.LayerNorm(config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.uniform_(self.embedding.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.output.weight, gain=0.5 * max(1.0, math.sqrt(config.vocab_size / config.d_model)))

    def hidden(self, tokens: Tensor, cache: StateCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        self.start(tokens, cache)
        x: Tensor = self.embedding_norm(self.embedding(tokens))
        v_first = None
        for layer, block in enumerate(self.blocks):
            x, v_first = block(x, v_first, None if cache is None else cache.layers[layer])
        hidden: Tensor = self.norm(x)
        return hidden

    def new_cache(self, batch_size: int, capacity: int) -> StateCache:
        """States of fixed size, whatever the capacity."""
        self.check_context("capacity", capacity)
        c, like = self.config, self.embedding.weight
        last = (batch_size, c.d_model)
        state = (batch_size, c.d_model // c.d_head, c.d_head, c.d_head)
        return StateCache(
            [
                (like.new_zeros(last), like.new_zeros(state, dtype=torch.float32), like.new_zeros(last))
                for _ in range(c.n_layer)
            ]
        )

    def uncounted_flops(self, batch_size: int, context_length: int) -> dict[str, float]:
        """See :class:`archbench.protocols.UncountedModel`. The sums of log decays are no matrix products."""
        heads = batch_size * self.config.n_layer * self.config.d_model // self.config.d_head
        return {"aten::cumsum": 0.0, "aten::linalg_solve_triangular": heads * solve_flops(context_length)}


PRESETS = {
    "nano": RWKV7Config(
        vocab_size=1024, context_length=128, n_layer=2, d_model=160, d_head=32, d_ff=640,
        decay_rank=32, rate_rank=32, value_rank=32, gate_rank=64,
    ),
    "small": RWKV7Config(
        vocab_size=8192, context_length=256, n_layer=6, d_model=384, d_head=64, d_ff=1024,
        decay_rank=64, rate_rank=64, value_rank=32, gate_rank=96,
    ),
    "paper": RWKV7Config(),
}  # fmt: skip


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="rwkv7",
        summary="Recurrent network whose matrix state each token decays, corrects and adds to (generalised delta rule)",
        paper='Peng et al. 2025, RWKV-7 "Goose" with Expressive Dynamic State Evolution, arXiv:2503.14456',
        config=RWKV7Config,
        presets=PRESETS,
    )


@hookimpl
def build(config: RWKV7Config) -> nn.Module:
    return RWKV7(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


def _published_names() -> dict[str, str]:
    names: dict[str, str] = {}
    for own, published in (
        ("embedding", "emb"),
        ("embedding_norm", "blocks.0.ln0"),
        ("blocks.*.time_norm", "blocks.*.ln1"),
        ("blocks.*.channel_norm", "blocks.*.ln2"),
        ("norm", "ln_out"),
        ("output", "head"),
        *(
            (f"blocks.*.time_mixing.{part}", f"blocks.*.att.{part}")
            for part in ("receptance", "key", "value", "output")
        ),
        *((f"blocks.*.channel_mixing.{part}", f"blocks.*.ffn.{part}") for part in ("key", "value")),
    ):
        names |= {f"{own}.{part}": f"{published}.{part}" for part in ("weight", "bias")}
    for part in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "r_k"):
        names[f"blocks.*.time_mixing.{part}"] = f"blocks.*.att.{part}"
    for own, letter in (("decay", "w"), ("rate", "a"), ("first_value", "v"), ("gate", "g")):
        for part, digit in (("bias", 0), ("down.weight", 1), ("up.weight", 2)):
            names[f"blocks.*.time_mixing.{own}.{part}"] = f"blocks.*.att.{letter}{digit}"
    return names | {
        "blocks.*.time_mixing.norm_weight": "blocks.*.att.ln_x.weight",
        "blocks.*.time_mixing.norm_bias": "blocks.*.att.ln_x.bias",
        "blocks.*.channel_mixing.x_k": "blocks.*.ffn.x_k",
    }


PUBLISHED_NAMES = _published_names()
"""A parameter here -> in BlinkDL's checkpoints."""

TRANSPOSED = [name for name in PUBLISHED_NAMES if name.endswith((".down.weight", ".up.weight"))]
"""Weights that are published as (in, out)."""

UNUSED = {f"blocks.0.att.v{digit}" for digit in range(3)}
"""In some checkpoints, though layer 0 has no other layer's values to mix in."""


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: RWKV7Config) -> dict[str, Tensor]:
    given = {name: tensor for name, tensor in state_dict.items() if name not in UNUSED}
    for name, tensor in given.items():
        if tensor.dim() == 3 or name.endswith(".att.r_k"):  # published as (1, 1, C), and as (H, D)
            given[name] = tensor.flatten()
    with torch.device("meta"):
        expected = RWKV7(config).state_dict()
    return published_weights(given, expected, PUBLISHED_NAMES, model="RWKV-7", transposed=TRANSPOSED)


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: RWKV7Config) -> dict[str, Tensor]:
    weights = exported_weights(state_dict, PUBLISHED_NAMES, transposed=TRANSPOSED)
    for name, tensor in weights.items():
        if name.endswith(".att.r_k"):
            weights[name] = tensor.view(-1, config.d_head)
        elif tensor.dim() == 1 and not name.endswith((".weight", ".bias")):
            weights[name] = tensor.view(1, 1, -1)
    return weights


PUBLISHED_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "d_model": "hidden_size",
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "decay_rank": "decay_low_rank_dim",
    "rate_rank": "a_low_rank_dim",
    "value_rank": "v_low_rank_dim",
    "gate_rank": "gate_low_rank_dim",
}
"""A field here -> in the config.json that exports write: BlinkDL's checkpoints have none."""

MODEL_TYPE = "rwkv_x070"
"""After the class RWKV_x070 of the package ``rwkv``; flash-linear-attention's rwkv7 names its weights otherwise."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> RWKV7Config:
    return RWKV7Config(**published_fields(published, PUBLISHED_FIELDS, model_type=MODEL_TYPE))


@hookimpl
def export_config(config: RWKV7Config) -> dict[str, Any]:
    return exported_fields(config, PUBLISHED_FIELDS, model_type=MODEL_TYPE, architectures="RWKV_x070")
