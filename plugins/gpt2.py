"""GPT-2, the decoder-only transformer of Radford et al. 2019: GPT-1 with the norms moved before each sublayer.

Paper: Language Models are Unsupervised Multitask Learners, section 2.3. Published code: openai/gpt-2, src/model.py.
Reference implementation: GPT2LMHeadModel of transformers, with which logits and gradients are compared. With
``bias=False`` it is the model of karpathy/nanoGPT but for the GELU: published in its tanh form, there in its exact one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.errors import ConfigError
from archbench.nn import (
    DecoderOnly,
    Dropout,
    FeedForward,
    KVCache,
    SelfAttention,
    exported_fields,
    exported_weights,
    published_fields,
    published_weights,
    rows_at,
)

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch


GELU = partial(F.gelu, approximate="tanh")


class GPT2Config(ModelConfig):
    """Sizes and rates of a GPT-2; the defaults are those of the published 124M model."""

    vocab_size: int = Field(default=50_257, gt=0, description="V, number of token ids")
    context_length: int = Field(default=1024, gt=0, description="T, positions with an embedding, the most it reads")
    n_layer: int = Field(default=12, gt=0, description="L, blocks")
    n_head: int = Field(default=12, gt=0, description="H, attention heads of width D = d_model / n_head")
    d_model: int = Field(default=768, gt=0, description="C, width of the hidden states")
    d_ff: int = Field(default=3072, gt=0, description="F, width of the feed-forward layer")
    bias: bool = Field(default=True, description="whether projections and norms have biases")
    embd_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on the sum of the two embeddings")
    resid_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on what each sublayer adds")
    attn_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on the attention weights")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.d_model % self.n_head:
            cause = f"{self.n_head} heads do not divide d_model = {self.d_model}"
            raise ConfigError("GPT2Config.n_head", cause, "Choose one of its divisors")
        return self


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy of the residual stream and added to it (pre-LN)."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        c = config
        self.attention_norm = nn.LayerNorm(c.d_model, eps=1e-5, bias=c.bias)
        self.attention = SelfAttention(c.d_model, c.n_head, layer=layer, dropout=c.attn_dropout, bias=c.bias)
        self.feed_forward_norm = nn.LayerNorm(c.d_model, eps=1e-5, bias=c.bias)
        self.feed_forward = FeedForward(c.d_model, c.d_ff, GELU, bias=c.bias)
        self.resid_dropout = Dropout(c.resid_dropout)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.resid_dropout(self.attention(self.attention_norm(x), cache))
        return x + self.resid_dropout(self.feed_forward(self.feed_forward_norm(x)))


class GPT2(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V). The output head is the token embedding."""

    config: GPT2Config

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.embd_dropout = Dropout(config.embd_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model, eps=1e-5, bias=config.bias)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            # What adds to the residual stream does so 2L times.
            if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        start = self.start(tokens, cache)
        positions = rows_at(self.position_embedding.weight, start, tokens.shape[1])  # (T, C)
        x = self.embd_dropout(self.embedding(tokens) + positions)
        for block in self.blocks:
            x = block(x, cache)
        y: Tensor = self.norm(x)
        return y

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Room for the keys and values of ``capacity`` positions."""
        self.check_context("capacity", capacity)
        c = self.config
        return KVCache(
            layers=c.n_layer, batch_size=batch_size, heads=c.n_head, capacity=capacity,
            head_width=c.d_model // c.n_head, like=self.embedding.weight,
        )  # fmt: skip


PRESETS = {
    "nano": GPT2Config(
        vocab_size=1024, context_length=128, n_layer=2, n_head=6, d_model=192, d_ff=768,
        embd_dropout=0.0, resid_dropout=0.0, attn_dropout=0.0,
    ),
    "small": GPT2Config(vocab_size=8192, context_length=256, n_layer=6, n_head=6, d_model=384, d_ff=1536),
    "paper": GPT2Config(),
}  # fmt: skip


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="gpt2",
        summary="Pre-LN decoder-only transformer with learned positions and a final norm",
        paper="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
        config=GPT2Config,
        presets=PRESETS,
    )


@hookimpl
def build(config: GPT2Config) -> nn.Module:
    return GPT2(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


MODULES = {
    "embedding": "wte",
    "position_embedding": "wpe",
    "blocks.*.attention_norm": "h.*.ln_1",
    "blocks.*.attention.qkv": "h.*.attn.c_attn",
    "blocks.*.attention.out": "h.*.attn.c_proj",
    "blocks.*.feed_forward_norm": "h.*.ln_2",
    "blocks.*.feed_forward.up": "h.*.mlp.c_fc",
    "blocks.*.feed_forward.down": "h.*.mlp.c_proj",
    "norm": "ln_f",
}
"""A module here -> in transformers' GPT2LMHeadModel."""


NAMES = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in MODULES.items() for kind in ("weight", "bias")}
PROJECTIONS = {f"{ours}.weight" for ours, theirs in MODULES.items() if ".c_" in theirs}
"""Weights that are published as (in, out)."""


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    given = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    masks = (".attn.bias", ".attn.masked_bias")
    given = {name: tensor for name, tensor in given.items() if not name.endswith(masks)}
    if not config.bias:  # as export_weights writes it
        given = {name: tensor for name, tensor in given.items() if not name.endswith(".bias") or tensor.any()}
    with torch.device("meta"):
        expected = GPT2(config).state_dict()
    return published_weights(
        given, expected, NAMES, model="GPT2LMHeadModel", transposed=PROJECTIONS, tied_head="lm_head.weight"
    )


PUBLISHED_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "d_model": "n_embd",
    "embd_dropout": "embd_pdrop",
    "resid_dropout": "resid_pdrop",
    "attn_dropout": "attn_pdrop",
}
"""A field here -> in transformers' GPT2Config."""

ONLY = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
"""Fields there that have one value here."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> GPT2Config:
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="gpt2",
        absent={"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1}, only=ONLY,
    )  # fmt: skip
    bias = published.get("bias", True)
    return GPT2Config(**fields, bias=bias, d_ff=published.get("n_inner") or 4 * fields["d_model"])


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """A GPT2LMHeadModel has biases: where there are none here, they are zeros there."""
    with torch.device("meta"):
        biased = GPT2(config.override(bias=True)).state_dict()
    like = state_dict["embedding.weight"]
    zeros = {name: like.new_zeros(shaped.shape) for name, shaped in biased.items() if name not in state_dict}
    weights = exported_weights({**state_dict, **zeros}, NAMES, transposed=PROJECTIONS)
    return {f"transformer.{name}": tensor for name, tensor in weights.items()}


@hookimpl
def export_config(config: GPT2Config) -> dict[str, Any]:
    fields = {**PUBLISHED_FIELDS, "d_ff": "n_inner"}
    only = ONLY if config.bias else {**ONLY, "bias": False}  # which transformers does not know, and import_config does
    return exported_fields(config, fields, model_type="gpt2", architectures="GPT2LMHeadModel", only=only)
