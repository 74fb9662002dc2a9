"""GPT-1, the decoder-only transformer of Radford et al. 2018: the baseline that everything else is compared with.

Paper: Improving Language Understanding by Generative Pre-Training, section 4.1.
Published code: openai/finetune-transformer-lm, train.py. What differs from it: docs/gpt1.md.
"""

from __future__ import annotations

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
    ResidualNorm,
    SelfAttention,
    exported_fields,
    exported_weights,
    inexpressible,
    published_fields,
    published_weights,
    rows_at,
)

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch


GELU = partial(F.gelu, approximate="tanh")


class GPT1Config(ModelConfig):
    """Sizes and rates of a GPT-1; the defaults are the published ones."""

    vocab_size: int = Field(default=40_478, gt=0, description="V, number of token ids")
    context_length: int = Field(default=512, gt=0, description="T, positions with an embedding, the most it reads")
    n_layer: int = Field(default=12, gt=0, description="L, blocks")
    n_head: int = Field(default=12, gt=0, description="H, attention heads of width D = d_model / n_head")
    d_model: int = Field(default=768, gt=0, description="C, width of the hidden states")
    d_ff: int = Field(default=3072, gt=0, description="F, width of the feed-forward layer")
    embd_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on the sum of the two embeddings")
    resid_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on what each sublayer adds")
    attn_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on the attention weights")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.d_model % self.n_head:
            cause = f"{self.n_head} heads do not divide d_model = {self.d_model}"
            raise ConfigError("GPT1Config.n_head", cause, "Choose one of its divisors")
        return self


class Block(nn.Module):
    """Attention and feed-forward, each added to its input and normalised after the sum (post-LN)."""

    def __init__(self, config: GPT1Config, layer: int) -> None:
        super().__init__()
        C = config.d_model
        self.attention = SelfAttention(C, config.n_head, layer=layer, dropout=config.attn_dropout)
        self.attention_norm = ResidualNorm(C, dropout=config.resid_dropout)
        self.feed_forward = FeedForward(C, config.d_ff, GELU)
        self.feed_forward_norm = ResidualNorm(C, dropout=config.resid_dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = self.attention_norm(x, self.attention(x, cache))
        return self.feed_forward_norm(x, self.feed_forward(x))


class GPT1(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V). The output head is the token embedding; no norm precedes it."""

    config: GPT1Config

    def __init__(self, config: GPT1Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.embd_dropout = Dropout(config.embd_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        start = self.start(tokens, cache)
        positions = rows_at(self.position_embedding.weight, start, tokens.shape[1])  # (T, C)
        x = self.embd_dropout(self.embedding(tokens) + positions)
        for block in self.blocks:
            x = block(x, cache)
        return x

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Room for the keys and values of ``capacity`` positions."""
        self.check_context("capacity", capacity)
        c = self.config
        return KVCache(
            layers=c.n_layer, batch_size=batch_size, heads=c.n_head, capacity=capacity,
            head_width=c.d_model // c.n_head, like=self.embedding.weight,
        )  # fmt: skip

    def forward_flops(self, batch_size: int, context_length: int) -> int:
        """Model FLOPs of a forward pass on tokens (B, T); see :class:`archbench.protocols.FlopsModel`.

        2 a multiply–add. Attention counts over the whole T × T square, by convention.
        """
        c = self.config
        C = c.d_model
        block = 3 * C * C + C * C + C * c.d_ff + c.d_ff * C  # weights: qkv, out; up, down
        square = 2 * context_length * C  # a position's scores with T keys, and its mixture of T values, in all heads
        head = C * c.vocab_size
        return batch_size * context_length * 2 * (c.n_layer * (block + square) + head)


PRESETS = {
    "nano": GPT1Config(
        vocab_size=1024, context_length=128, n_layer=2, n_head=6, d_model=192, d_ff=768,
        embd_dropout=0.0, resid_dropout=0.0, attn_dropout=0.0,
    ),
    "small": GPT1Config(vocab_size=8192, context_length=256, n_layer=6, n_head=6, d_model=384, d_ff=1536),
    "paper": GPT1Config(),
}  # fmt: skip


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="gpt1",
        summary="Post-LN decoder-only transformer with learned positions: the baseline",
        paper="Radford et al. 2018, Improving Language Understanding by Generative Pre-Training",
        config=GPT1Config,
        presets=PRESETS,
    )


@hookimpl
def build(config: GPT1Config) -> nn.Module:
    return GPT1(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


MODULES = {
    "embedding": "tokens_embed",
    "position_embedding": "positions_embed",
    "blocks.*.attention.qkv": "h.*.attn.c_attn",
    "blocks.*.attention.out": "h.*.attn.c_proj",
    "blocks.*.attention_norm": "h.*.ln_1",
    "blocks.*.feed_forward.up": "h.*.mlp.c_fc",
    "blocks.*.feed_forward.down": "h.*.mlp.c_proj",
    "blocks.*.feed_forward_norm": "h.*.ln_2",
}
"""A module here -> in transformers' OpenAIGPTLMHeadModel, whose checkpoints hold the published weights."""


NAMES = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in MODULES.items() for kind in ("weight", "bias")}
PROJECTIONS = {f"{ours}.weight" for ours, theirs in MODULES.items() if ".c_" in theirs}
"""Weights that are published as (in, out)."""


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: GPT1Config) -> dict[str, Tensor]:
    """The weights of an OpenAIGPTLMHeadModel, or of its ``transformer`` alone."""
    given = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    masks = (".attn.bias", "position_ids")
    given = {name: tensor for name, tensor in given.items() if not name.endswith(masks)}
    with torch.device("meta"):
        expected = GPT1(config).state_dict()
    return published_weights(
        given, expected, NAMES, model="OpenAIGPTLMHeadModel", transposed=PROJECTIONS, tied_head="lm_head.weight"
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
"""A field here -> in transformers' OpenAIGPTConfig."""

# afn "gelu" is the tanh form there; newer files leave the tied head unsaid.
ONLY = {"afn": "gelu", "layer_norm_epsilon": 1e-5, "n_special": 0, "tie_word_embeddings": True}
"""Fields there that have one value here."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> GPT1Config:
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="openai-gpt",
        absent={"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1}, only=ONLY,
    )  # fmt: skip
    return GPT1Config(**fields, d_ff=4 * fields["d_model"])


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: GPT1Config) -> dict[str, Tensor]:
    weights = exported_weights(state_dict, NAMES, transposed=PROJECTIONS)
    return {f"transformer.{name}": tensor for name, tensor in weights.items()}


@hookimpl
def export_config(config: GPT1Config) -> dict[str, Any]:
    if config.d_ff != 4 * config.d_model:
        raise inexpressible(config, "d_ff", f"an OpenAIGPTLMHeadModel has 4 × {config.d_model} = {4 * config.d_model}")
    return exported_fields(
        config, PUBLISHED_FIELDS, model_type="openai-gpt", architectures="OpenAIGPTLMHeadModel", only=ONLY
    )
