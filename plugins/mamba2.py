"""Mamba-2 of Dao & Gu 2024: no attention, each head a state of fixed size that is written, decayed and read (SSD).

Paper: Transformers are SSMs (arXiv:2405.21060), sections 6 (the algorithm) and 7.1 (the block).
Reference implementation: Mamba2ForCausalLM of transformers, with which logits, gradients and decoding are compared;
initial weights as in state-spaces/mamba, mamba_ssm/modules/mamba2.py and models/mixer_seq_simple.py.
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
from archbench.kernels import rms_norm
from archbench.kernels.recurrence.ssd import ssd, ssd_step
from archbench.nn import (
    CausalConv1d,
    DecoderOnly,
    Linear,
    RMSNorm,
    StateCache,
    exported_fields,
    exported_weights,
    inexpressible,
    published_fields,
    published_weights,
    unlike,
)

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch


class Mamba2Config(ModelConfig):
    """Sizes of a Mamba-2; the defaults are those of the published state-spaces/mamba2-130m."""

    vocab_size: int = Field(default=50_288, gt=0, description="V, number of token ids")
    context_length: int = Field(default=2048, gt=0, description="T, positions it is trained on and the most it reads")
    n_layer: int = Field(default=24, gt=0, description="L, blocks")
    n_head: int = Field(default=24, gt=0, description="H, heads, each with a state of its own; published: H D = 2 C")
    n_group: int = Field(default=1, gt=0, description="G, groups of heads that write and read alike, a divisor of H")
    d_model: int = Field(default=768, gt=0, description="C, width of the hidden states")
    d_head: int = Field(default=64, gt=0, description="D, width of a head")
    d_state: int = Field(default=128, gt=0, description="N, rows of a head's state, each D wide")
    d_conv: int = Field(default=4, gt=0, description="K, positions that the convolution sees, the last one included")
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the mean square in RMSNorm")
    tied_head: bool = Field(default=True, description="whether the output head is the token embedding")

    @model_validator(mode="after")
    def _groups_share_the_heads(self) -> Self:
        if self.n_head % self.n_group:
            cause = f"{self.n_group} groups do not share {self.n_head} heads evenly"
            raise ConfigError("Mamba2Config.n_group", cause, "Choose a divisor of n_head")
        return self


State = tuple[Tensor, Tensor]
"""What a layer keeps: the convolution's (B, K - 1, H D + 2 G N), and the heads' (B, G, N, H/G · D) in float32."""


class Mixer(nn.Module):
    """x (B, T, C) -> (B, T, C): convolution and SSD, gated, between two projections."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = c = config
        inner, writes = c.n_head * c.d_head, c.n_group * c.d_state
        self.splits = [inner, inner + 2 * writes, c.n_head], [inner, writes, writes]
        self.in_proj = Linear(c.d_model, sum(self.splits[0]), bias=False)  # gate; x, B, C of the paper; step sizes
        self.conv = CausalConv1d(inner + 2 * writes, c.d_conv)
        dt = torch.empty(c.n_head).uniform_(math.log(1e-3), math.log(0.1)).exp_()  # step sizes to begin with
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # whose softplus is dt
        self.A_log = nn.Parameter(torch.empty(c.n_head).uniform_(1, 16).log_())
        self.skip = nn.Parameter(torch.ones(c.n_head))  # D of the paper
        self.norm = GatedRMSNorm(inner, c.n_group, c.norm_eps)
        self.out_proj = Linear(inner, c.d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(c.n_layer))

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        conv_state, ssm_state = state or (None, None)
        B, T, _ = x.shape
        gate, x, dt = torch.split(self.in_proj(x), self.splits[0], dim=-1)
        x, b, c = torch.split(F.silu(self.conv(x, conv_state)), self.splits[1], dim=-1)
        x = x.view(B, T, self.config.n_head, -1)  # (B, T, H, D)
        b, c = b.view(B, T, self.config.n_group, -1), c.view(B, T, self.config.n_group, -1)  # (B, T, G, N) each
        exact = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(dt.to(exact) + self.dt_bias)  # (B, T, H)
        a = -self.A_log.to(exact).exp()
        if ssm_state is not None and T == 1:
            y = ssd_step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], ssm_state).unsqueeze(1)
        else:
            y, final = ssd(x, dt, a, b, c, ssm_state)
            if ssm_state is not None:
                ssm_state.copy_(final.detach())
        y = torch.addcmul(y, x, self.skip.to(x.dtype).unsqueeze(-1))
        return self.out_proj(self.norm(y.flatten(2), gate))

    def new_state(self, batch_size: int) -> State:
        c, weight = self.config, self.in_proj.weight
        shape = (batch_size, c.n_group, c.d_state, c.n_head // c.n_group * c.d_head)
        exact = torch.promote_types(weight.dtype, torch.float32)
        return self.conv.new_state(batch_size), torch.zeros(shape, dtype=exact, device=weight.device)


class GatedRMSNorm(nn.Module):
    """RMSNorm of x · silu(gate) in each of G groups of channels: (B, T, H D) twice -> (B, T, H D)."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = x * F.silu(gate)
        if self.groups == 1:
            return rms_norm(x, self.weight, self.eps)
        groups = x.view(*x.shape[:-1], self.groups, -1)  # (B, T, G, H/G · D)
        return rms_norm(groups, torch.ones_like(groups[0, 0, 0]), self.eps).view(x.shape) * self.weight.to(x.dtype)


class Block(nn.Module):
    """The mixer, on a normalised copy of the residual stream and added to it; the stream is float32 (pre-norm)."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mixer(config)

    def forward(self, x: Tensor, state: State | None) -> Tensor:
        y: Tensor = self.mixer(self.norm(x).to(self.norm.weight.dtype), state)
        return x + y


class Mamba2(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V)."""

    config: Mamba2Config

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tied_head:
            self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def hidden(self, tokens: Tensor, cache: StateCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        self.start(tokens, cache)
        x = self.embedding(tokens)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for layer, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layers[layer])
        return self.norm(x).to(self.norm.weight.dtype)

    def new_cache(self, batch_size: int, capacity: int) -> StateCache:
        """States for ``batch_size`` sequences, of the same size whatever the ``capacity``."""
        self.check_context("capacity", capacity)
        return StateCache([module.new_state(batch_size) for module in self.modules() if isinstance(module, Mixer)])

    def uncounted_flops(self, batch_size: int, context_length: int) -> dict[str, float]:
        """Sums of logarithms of decays over time, one a head and position: no product, and no part of model FLOPs."""
        return {"aten::cumsum": 0.0}


PRESETS = {
    "nano": Mamba2Config(
        vocab_size=1024, context_length=128, n_layer=2, n_head=16, d_model=256, d_head=32, d_state=32,
    ),
    "small": Mamba2Config(
        vocab_size=8192, context_length=256, n_layer=12, n_head=12, d_model=384, d_head=64, d_state=64,
    ),
    "paper": Mamba2Config(),
}  # fmt: skip


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="mamba2",
        summary="Selective state space (SSD) with short convolutions: linear in T, decoding from a state of fixed size",
        paper="Dao & Gu 2024, Transformers are SSMs, arXiv:2405.21060",
        config=Mamba2Config,
        presets=PRESETS,
    )


@hookimpl
def build(config: Mamba2Config) -> nn.Module:
    return Mamba2(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


_MIXER = "backbone.layers.*.mixer."
PUBLISHED_NAMES = {
    "embedding.weight": "backbone.embeddings.weight",
    "blocks.*.norm.weight": "backbone.layers.*.norm.weight",
    "blocks.*.mixer.in_proj.weight": _MIXER + "in_proj.weight",
    "blocks.*.mixer.conv.weight": _MIXER + "conv1d.weight",
    "blocks.*.mixer.conv.bias": _MIXER + "conv1d.bias",
    "blocks.*.mixer.dt_bias": _MIXER + "dt_bias",
    "blocks.*.mixer.A_log": _MIXER + "A_log",
    "blocks.*.mixer.skip": _MIXER + "D",
    "blocks.*.mixer.norm.weight": _MIXER + "norm.weight",
    "blocks.*.mixer.out_proj.weight": _MIXER + "out_proj.weight",
    "norm.weight": "backbone.norm_f.weight",
    "output.weight": "lm_head.weight",
}
"""A parameter here -> in transformers' Mamba2ForCausalLM."""


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: Mamba2Config) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = Mamba2(config).state_dict()
    tied = "lm_head.weight" if config.tied_head else None
    return published_weights(state_dict, expected, PUBLISHED_NAMES, model="Mamba2ForCausalLM", tied_head=tied)


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: Mamba2Config) -> dict[str, Tensor]:
    return exported_weights(state_dict, PUBLISHED_NAMES)


PUBLISHED_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_heads",
    "n_group": "n_groups",
    "d_model": "hidden_size",
    "d_head": "head_dim",
    "d_state": "state_size",
    "d_conv": "conv_kernel",
    "norm_eps": "layer_norm_epsilon",
    "tied_head": "tie_word_embeddings",
}
"""A field here -> in transformers' Mamba2Config, which has no longest position: exports write one."""

ONLY = {
    "hidden_act": "silu",
    "use_bias": False,
    "use_conv_bias": True,
    "rms_norm": True,
    "residual_in_fp32": True,
}
"""Fields there that have one value here."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> Mamba2Config:
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="mamba2", only=ONLY,
        absent={"max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False},
    )  # fmt: skip
    limit = published.get("time_step_limit") or (0.0, math.inf)
    if limit[0] != 0 or limit[1] not in (math.inf, {"__float__": "Infinity"}):  # as transformers 5 writes it
        raise unlike("time_step_limit", f"it is {limit}, but here step sizes have no limit")
    inner, C = fields["n_head"] * fields["d_head"], fields["d_model"]
    if (expand := published.get("expand") or 2) * C != inner:
        raise unlike("expand", f"it is {expand}, and num_heads · head_dim / hidden_size is {inner / C:g}")
    return Mamba2Config(**fields)


@hookimpl
def export_config(config: Mamba2Config) -> dict[str, Any]:
    inner, C = config.n_head * config.d_head, config.d_model
    if inner % C:
        raise inexpressible(config, "n_head", f"the heads of a Mamba2ForCausalLM are a multiple of d_model = {C} wide")
    fields = exported_fields(
        config, PUBLISHED_FIELDS, model_type="mamba2", architectures="Mamba2ForCausalLM", only=ONLY
    )
    return {**fields, "expand": inner // C}
