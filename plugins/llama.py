"""LLaMA, the decoder of Touvron et al. 2023: pre-norm, RMSNorm, rotary positions, SwiGLU, no biases.

Papers: LLaMA (arXiv:2302.13971), section 2.2; grouped-query attention as in Llama 2 (arXiv:2307.09288), section 2.2.
Reference implementation: LlamaForCausalLM of transformers, with which logits and gradients are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.nn import (
    LLAMA_ATTENTION_FIELDS,
    LLAMA_FIELDS,
    LLAMA_NAMES,
    DecoderOnly,
    GatedFeedForward,
    KVCache,
    RMSNorm,
    Rotary,
    RotaryAttention,
    exported_fields,
    exported_weights,
    llama_rows,
    published_fields,
    published_rope_theta,
    published_weights,
)

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch


class LlamaConfig(ModelConfig):
    """Sizes of a LLaMA; the defaults are the published 7B's."""

    vocab_size: int = Field(default=32_000, gt=0, description="V, number of token ids")
    context_length: int = Field(default=2048, gt=0, description="T, positions it is trained on and the most it reads")
    n_layer: int = Field(default=32, gt=0, description="L, blocks")
    n_head: int = Field(default=32, gt=0, description="H, query heads")
    n_kv_head: int = Field(default=32, gt=0, description="G, key/value heads, a divisor of H")
    d_model: int = Field(default=4096, gt=0, description="C, width of the hidden states")
    d_head: int = Field(default=128, gt=0, description="D, width of a head, even")
    d_ff: int = Field(default=11_008, gt=0, description="F, width of the feed-forward layer")
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies, without a unit")
    norm_eps: float = Field(default=1e-6, gt=0, description="added to the mean square in RMSNorm")
    tied_head: bool = Field(default=False, description="whether the output head is the token embedding")


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy of the residual stream and added to it (pre-norm)."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps)
        self.attention = RotaryAttention(c.d_model, c.n_head, c.n_kv_head, c.d_head, layer=layer)
        self.feed_forward_norm = RMSNorm(c.d_model, c.norm_eps)
        self.feed_forward = GatedFeedForward(c.d_model, c.d_ff, F.silu)  # SwiGLU

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V)."""

    config: LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.rotary = Rotary(config.d_head, config.context_length, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tied_head:
            self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        start = self.start(tokens, cache)
        angles = self.rotary(start, start + tokens.shape[1])
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, angles, cache)
        return self.norm(x)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Room for the keys and values of ``capacity`` positions."""
        self.check_context("capacity", capacity)
        c = self.config
        return KVCache(
            layers=c.n_layer, batch_size=batch_size, heads=c.n_kv_head, capacity=capacity, head_width=c.d_head,
            like=self.embedding.weight,
        )  # fmt: skip


PRESETS = {
    "nano": LlamaConfig(
        vocab_size=1024, context_length=128, n_layer=2, n_head=6, n_kv_head=2, d_model=192, d_head=32, d_ff=512
    ),
    "small": LlamaConfig(
        vocab_size=8192, context_length=256, n_layer=6, n_head=6, n_kv_head=2, d_model=384, d_head=64, d_ff=1024
    ),
    "paper": LlamaConfig(),
}


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="llama",
        summary="Pre-norm decoder with RMSNorm, rotary positions, SwiGLU and grouped-query attention",
        paper="Touvron et al. 2023, LLaMA: Open and Efficient Foundation Language Models, arXiv:2302.13971",
        config=LlamaConfig,
        presets=PRESETS,
    )


@hookimpl
def build(config: LlamaConfig) -> nn.Module:
    return Llama(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = Llama(config).state_dict()
    tied = "lm_head.weight" if config.tied_head else None
    return published_weights(state_dict, expected, LLAMA_NAMES, model="LlamaForCausalLM", tied_head=tied)


PUBLISHED_FIELDS = {**LLAMA_FIELDS, "tied_head": "tie_word_embeddings"}
"""A field here -> in transformers' LlamaConfig."""

ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""Fields there that have one value here."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> LlamaConfig:
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="llama",
        absent={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
        only=ONLY,
    )  # fmt: skip
    fields["n_kv_head"] = published.get("num_key_value_heads") or fields["n_head"]
    fields["d_head"] = published.get("head_dim") or fields["d_model"] // fields["n_head"]
    return LlamaConfig(**fields, rope_theta=published_rope_theta(published))


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    return exported_weights(state_dict, LLAMA_NAMES, rows=llama_rows(config))


@hookimpl
def export_config(config: LlamaConfig) -> dict[str, Any]:
    fields = {**PUBLISHED_FIELDS, **LLAMA_ATTENTION_FIELDS}
    return exported_fields(config, fields, model_type="llama", architectures="LlamaForCausalLM", only=ONLY)
