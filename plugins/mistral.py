"""Mistral 7B, the decoder of Jiang et al. 2023: LLaMA's blocks with grouped queries and a sliding window.

Paper: Mistral 7B (arXiv:2310.06825), section 2. Each position sees itself and the W - 1 before it, so that L layers
reach back L (W - 1) positions, and decoding keeps W keys and values a layer, in a ring.
Reference implementation: MistralForCausalLM of transformers, with which logits and gradients are compared.
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


class MistralConfig(ModelConfig):
    """Sizes of a Mistral; the defaults are those of the published 7B, version 0.1."""

    vocab_size: int = Field(default=32_000, gt=0, description="V, number of token ids")
    context_length: int = Field(default=32_768, gt=0, description="T, positions it is trained on and the most it reads")
    n_layer: int = Field(default=32, gt=0, description="L, blocks")
    n_head: int = Field(default=32, gt=0, description="H, query heads")
    n_kv_head: int = Field(default=8, gt=0, description="G, key/value heads, a divisor of H")
    d_model: int = Field(default=4096, gt=0, description="C, width of the hidden states")
    d_head: int = Field(default=128, gt=0, description="D, width of a head, even")
    d_ff: int = Field(default=14_336, gt=0, description="F, width of the feed-forward layer")
    window: int | None = Field(
        default=4096, gt=0, description="W, positions that each sees, itself included; null: all"
    )
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies, without a unit")
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the mean square in RMSNorm")


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy of the residual stream and added to it (pre-norm)."""

    def __init__(self, config: MistralConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps)
        self.attention = RotaryAttention(c.d_model, c.n_head, c.n_kv_head, c.d_head, layer=layer, window=c.window)
        self.feed_forward_norm = RMSNorm(c.d_model, c.norm_eps)
        self.feed_forward = GatedFeedForward(c.d_model, c.d_ff, F.silu)  # SwiGLU

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Mistral(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V)."""

    config: MistralConfig

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.rotary = Rotary(config.d_head, config.context_length, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
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
        """Room for the keys and values of ``capacity`` positions, of which the last W are kept."""
        self.check_context("capacity", capacity)
        c = self.config
        return KVCache(
            layers=c.n_layer, batch_size=batch_size, heads=c.n_kv_head, capacity=capacity, head_width=c.d_head,
            like=self.embedding.weight, window=c.window,
        )  # fmt: skip


PRESETS = {
    "nano": MistralConfig(
        vocab_size=1024, context_length=128, n_layer=2, n_head=6, n_kv_head=2, d_model=192, d_head=32, d_ff=512,
        window=32,
    ),
    "small": MistralConfig(
        vocab_size=8192, context_length=256, n_layer=6, n_head=6, n_kv_head=2, d_model=384, d_head=64, d_ff=1024,
        window=64,
    ),
    "paper": MistralConfig(),
}  # fmt: skip


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="mistral",
        summary="LLaMA's blocks with sliding-window attention: each position sees the last W",
        paper="Jiang et al. 2023, Mistral 7B, arXiv:2310.06825",
        config=MistralConfig,
        presets=PRESETS,
    )


@hookimpl
def build(config: MistralConfig) -> nn.Module:
    return Mistral(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: MistralConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = Mistral(config).state_dict()
    return published_weights(state_dict, expected, LLAMA_NAMES, model="MistralForCausalLM")


PUBLISHED_FIELDS = {**LLAMA_FIELDS, "n_kv_head": "num_key_value_heads"}
"""A field here -> in transformers' MistralConfig."""

ONLY = {"hidden_act": "silu", "tie_word_embeddings": False}
"""Fields there that have one value here."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> MistralConfig:
    fields = published_fields(published, PUBLISHED_FIELDS, model_type="mistral", only=ONLY)
    fields["window"] = published.get("sliding_window", 4096)  # null: none; absent: transformers' default
    fields["d_head"] = published.get("head_dim") or fields["d_model"] // fields["n_head"]
    return MistralConfig(**fields, rope_theta=published_rope_theta(published))


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: MistralConfig) -> dict[str, Tensor]:
    return exported_weights(state_dict, LLAMA_NAMES, rows=llama_rows(config))


@hookimpl
def export_config(config: MistralConfig) -> dict[str, Any]:
    fields = {**PUBLISHED_FIELDS, **LLAMA_ATTENTION_FIELDS, "window": "sliding_window"}
    return exported_fields(config, fields, model_type="mistral", architectures="MistralForCausalLM", only=ONLY)
