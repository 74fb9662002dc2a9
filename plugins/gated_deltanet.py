"""Gated DeltaNet, the linear-attention decoder of Yang, Kautz & Hatamizadeh 2024: a table that fades and is corrected.

Paper: Gated Delta Networks: Improving Mamba2 with Delta Rule (arXiv:2412.06464), section 3.
Published code: NVlabs/GatedDeltaNet, whose GatedDeltaNet_1.3B is the preset `paper`; and GatedDeltaNetForCausalLM of
fla-org/flash-linear-attention, in whose names checkpoints are published. Logits and gradients are compared with
transformers, whose OlmoHybridForCausalLM consists of the same blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.kernels import rms_norm
from archbench.kernels.recurrence.delta_rule import gated_delta_rule, gated_delta_step
from archbench.nn import (
    CausalConv1d,
    DecoderOnly,
    GatedFeedForward,
    Linear,
    RMSNorm,
    StateCache,
    exported_fields,
    exported_weights,
    published_fields,
    published_weights,
)

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch


class GatedDeltaNetConfig(ModelConfig):
    """Sizes of a Gated DeltaNet; the defaults are those of the paper's 1.3B."""

    vocab_size: int = Field(default=32_000, gt=0, description="V, number of token ids")
    context_length: int = Field(default=4096, gt=0, description="T, positions it is trained on and the most it reads")
    n_layer: int = Field(default=16, gt=0, description="L, blocks")
    n_head: int = Field(default=9, gt=0, description="H, heads, each with a state of D × M")
    d_model: int = Field(default=2400, gt=0, description="C, width of the hidden states")
    d_head: int = Field(default=200, gt=0, description="D, width of a head's queries and keys")
    d_value: int = Field(default=400, gt=0, description="M, width of a head's values")
    d_conv: int = Field(default=4, gt=0, description="K, positions that the short convolutions see")
    d_ff: int = Field(default=5888, gt=0, description="F, width of the feed-forward layer")
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the mean square in RMSNorm")
    tied_head: bool = Field(default=True, description="whether the output head is the token embedding")


State = tuple[Tensor, Tensor]
"""What one layer keeps: inputs of the convolutions (B, K - 1, H (2D + M)), and the tables (B, H, D, M) in float32."""


class Mixer(nn.Module):
    """x (B, T, C) -> (B, T, C): each head writes to and reads from a table of its own, by the gated delta rule."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        self.config = c = config
        H, D, M = c.n_head, c.d_head, c.d_value
        self.splits = [H * (2 * D + M), H * M, H, H], [H * D, H * D, H * M]
        self.in_proj = Linear(c.d_model, sum(self.splits[0]), bias=False)  # q, k, v; output gate; a; b
        self.conv = CausalConv1d(H * (2 * D + M), c.d_conv, bias=False)
        self.A_log = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.norm = RMSNorm(M, c.norm_eps)
        self.out_proj = Linear(H * M, c.d_model, bias=False)

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        conv_state, table = state or (None, None)
        heads = (*x.shape[:2], self.config.n_head, -1)
        qkv, gate, a, b = torch.split(self.in_proj(x), self.splits[0], dim=-1)
        qkv = F.silu(self.conv(qkv, conv_state))
        q, k, v = (x.view(heads) for x in torch.split(qkv, self.splits[1], dim=-1))  # (B, T, H, D), twice; (B, T, H, M)
        q, k = unit(q) * self.config.d_head**-0.5, unit(k)
        exact = torch.promote_types(x.dtype, torch.float32)
        g = -self.A_log.to(exact).exp() * F.softplus(a.to(exact) + self.dt_bias)  # (B, T, H), logarithm of the decay
        beta = b.to(exact).sigmoid()
        if table is not None and x.shape[1] == 1:
            y = gated_delta_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], table).unsqueeze(1)
        else:
            y, final = gated_delta_rule(q, k, v, g, beta, table)  # (B, T, H, M)
            if table is not None:
                table.copy_(final.detach())
        return self.out_proj((self.norm(y) * F.silu(gate.view(heads))).flatten(2))

    def new_state(self, batch_size: int) -> State:
        c, weight = self.config, self.in_proj.weight
        shape, exact = (batch_size, c.n_head, c.d_head, c.d_value), torch.promote_types(weight.dtype, torch.float32)
        return self.conv.new_state(batch_size), torch.zeros(shape, dtype=exact, device=weight.device)


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(Σ x² + eps) over the last dimension D, which is RMSNorm with a gain of 1 / √D."""
    D = x.shape[-1]
    return rms_norm(x, x.new_full((D,), D**-0.5), eps / D)


class Block(nn.Module):
    """Mixer and feed-forward, each on a normalised copy of the residual stream and added to it (pre-norm)."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mixer(config)
        self.feed_forward_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = GatedFeedForward(config.d_model, config.d_ff, F.silu)  # SwiGLU

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), state)
        return x + self.feed_forward(self.feed_forward_norm(x))


class GatedDeltaNet(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V). It has no positions: the decay and the convolutions tell them apart."""

    config: GatedDeltaNetConfig

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tied_head:
            self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the published code: decays as in Mamba-2, feed-forward outputs less by √(2L), other layers as in torch."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Mixer):
                dt = torch.empty_like(module.dt_bias).uniform_(math.log(0.001), math.log(0.1)).exp_()
                module.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
                module.A_log.uniform_(0, 16).log_()
            elif isinstance(module, GatedFeedForward):
                module.down.weight.div_(math.sqrt(2 * self.config.n_layer))

    def hidden(self, tokens: Tensor, cache: StateCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        self.start(tokens, cache)
        x = self.embedding(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layers[layer])
        return self.norm(x)

    def new_cache(self, batch_size: int, capacity: int) -> StateCache:
        """States for ``batch_size`` sequences, of the same size whatever the ``capacity``."""
        self.check_context("capacity", capacity)
        return StateCache([module.new_state(batch_size) for module in self.modules() if isinstance(module, Mixer)])

    def uncounted_flops(self, batch_size: int, context_length: int) -> dict[str, float]:
        """Sums of logarithms of decays within chunks: no product, and no part of model FLOPs."""
        return {"aten::cumsum": 0.0}


PRESETS = {
    "nano": GatedDeltaNetConfig(
        vocab_size=1024, context_length=128, n_layer=2, n_head=3, d_model=192, d_head=48, d_value=96, d_ff=416
    ),
    "small": GatedDeltaNetConfig(
        vocab_size=8192, context_length=256, n_layer=6, n_head=6, d_model=384, d_head=48, d_value=96, d_ff=832
    ),
    "paper": GatedDeltaNetConfig(),
}


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="gated-deltanet",
        summary="Linear attention by the gated delta rule (a state that fades and is corrected), SwiGLU",
        paper="Yang, Kautz & Hatamizadeh 2024, Gated Delta Networks, arXiv:2412.06464",
        config=GatedDeltaNetConfig,
        presets=PRESETS,
    )


@hookimpl
def build(config: GatedDeltaNetConfig) -> nn.Module:
    return GatedDeltaNet(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


PUBLISHED_NAMES: dict[str, str | tuple[str, ...]] = {
    "embedding.weight": "model.embeddings.weight",
    "blocks.*.mixer_norm.weight": "model.layers.*.attn_norm.weight",
    "blocks.*.mixer.in_proj.weight": tuple(f"model.layers.*.attn.{part}_proj.weight" for part in "qkvgab"),
    "blocks.*.mixer.conv.weight": tuple(f"model.layers.*.attn.{part}_conv1d.weight" for part in "qkv"),
    "blocks.*.mixer.A_log": "model.layers.*.attn.A_log",
    "blocks.*.mixer.dt_bias": "model.layers.*.attn.dt_bias",
    "blocks.*.mixer.norm.weight": "model.layers.*.attn.o_norm.weight",
    "blocks.*.mixer.out_proj.weight": "model.layers.*.attn.o_proj.weight",
    "blocks.*.feed_forward_norm.weight": "model.layers.*.mlp_norm.weight",
    "blocks.*.feed_forward.gate_up.weight": (
        "model.layers.*.mlp.gate_proj.weight",
        "model.layers.*.mlp.up_proj.weight",
    ),
    "blocks.*.feed_forward.down.weight": "model.layers.*.mlp.down_proj.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""A parameter here -> in flash-linear-attention's GatedDeltaNetForCausalLM."""


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: GatedDeltaNetConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = GatedDeltaNet(config).state_dict()
    tied = "lm_head.weight" if config.tied_head else None
    return published_weights(state_dict, expected, PUBLISHED_NAMES, model="GatedDeltaNetForCausalLM", tied_head=tied)


PUBLISHED_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_heads",
    "d_model": "hidden_size",
    "d_head": "head_dim",
    "d_conv": "conv_size",
    "norm_eps": "norm_eps",
    "tied_head": "tie_word_embeddings",
}
"""A field here -> in the config.json of flash-linear-attention's gated_deltanet."""

ONLY = {
    "use_gate": True,
    "use_short_conv": True,
    "allow_neg_eigval": False,
    "attn": None,
    "attnres_block_size": None,
    "hidden_act": "swish",
    "output_gate_activation": "swish",
}
"""Fields there that have one value here."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> GatedDeltaNetConfig:
    heads = published.get("num_heads")
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="gated_deltanet",
        absent={"conv_size": 4, "norm_eps": 1e-6, "tie_word_embeddings": False},
        only={**ONLY, "num_v_heads": heads},
    )  # fmt: skip
    fields["d_value"] = round(fields["d_head"] * float(published.get("expand_v") or 2.0))
    default = fields["d_model"] * (published.get("hidden_ratio") or 4) * 2 // 3
    fields["d_ff"] = published.get("intermediate_size") or -(-default // 256) * 256
    return GatedDeltaNetConfig(**fields)


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: GatedDeltaNetConfig) -> dict[str, Tensor]:
    H, qk, v = config.n_head, config.n_head * config.d_head, config.n_head * config.d_value
    rows = {"blocks.*.mixer.in_proj.weight": (qk, qk, v, v, H, H), "blocks.*.mixer.conv.weight": (qk, qk, v)}
    return exported_weights(state_dict, PUBLISHED_NAMES, rows=rows)


@hookimpl
def export_config(config: GatedDeltaNetConfig) -> dict[str, Any]:
    fields = exported_fields(
        config, PUBLISHED_FIELDS | {"d_ff": "intermediate_size"}, model_type="gated_deltanet",
        architectures="GatedDeltaNetForCausalLM", only=ONLY,
    )  # fmt: skip
    return {**fields, "expand_v": config.d_value / config.d_head}
