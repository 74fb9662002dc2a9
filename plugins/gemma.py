"""Gemma, the decoder of the Gemma Team 2024: embeddings scaled by √C, GeGLU, gains of 1 + w, heads of any width.

Paper: Gemma: Open Models Based on Gemini Research and Technology (arXiv:2403.08295), section 2. Published code:
google-deepmind/gemma (version 1). The heads' width is free: 16 of 256 channels in a model 3,072 wide.
Reference implementation: GemmaForCausalLM of transformers, with which logits and gradients are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
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


class GemmaConfig(ModelConfig):
    """Sizes of a Gemma; the defaults are the published 7B's."""

    vocab_size: int = Field(default=256_000, gt=0, description="V, number of token ids")
    context_length: int = Field(default=8192, gt=0, description="T, positions it is trained on and the most it reads")
    n_layer: int = Field(default=28, gt=0, description="L, blocks")
    n_head: int = Field(default=16, gt=0, description="H, query heads")
    n_kv_head: int = Field(default=16, gt=0, description="G, key/value heads, a divisor of H")
    d_model: int = Field(default=3072, gt=0, description="C, width of the hidden states")
    d_head: int = Field(default=256, gt=0, description="D, width of a head, even")
    d_ff: int = Field(default=24_576, gt=0, description="F, width of the feed-forward layer")
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies, without a unit")
    norm_eps: float = Field(default=1e-6, gt=0, description="added to the mean square in RMSNorm")


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy of the residual stream and added to it (pre-norm)."""

    def __init__(self, config: GemmaConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps, gain_offset=1.0)
        self.attention = RotaryAttention(c.d_model, c.n_head, c.n_kv_head, c.d_head, layer=layer)
        self.feed_forward_norm = RMSNorm(c.d_model, c.norm_eps, gain_offset=1.0)
        self.feed_forward = GatedFeedForward(c.d_model, c.d_ff, partial(F.gelu, approximate="tanh"))  # GeGLU

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Gemma(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V). The output head is the token embedding."""

    config: GemmaConfig

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.rotary = Rotary(config.d_head, config.context_length, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps, gain_offset=1.0)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        start = self.start(tokens, cache)
        angles = self.rotary(start, start + tokens.shape[1])
        x = self.embedding(tokens)
        # Published: the factor is rounded to the dtype of the activations, √3072 to 55.5 in bfloat16.
        x = x * torch.tensor(math.sqrt(self.config.d_model), dtype=x.dtype)
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
    "nano": GemmaConfig(
        vocab_size=1024, context_length=128, n_layer=2, n_head=3, n_kv_head=1, d_model=192, d_head=96, d_ff=576
    ),
    "small": GemmaConfig(
        vocab_size=8192, context_length=256, n_layer=6, n_head=6, n_kv_head=1, d_model=384, d_head=96, d_ff=1152
    ),
    "paper": GemmaConfig(),
}


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="gemma",
        summary="Pre-norm decoder with scaled, tied embeddings, GeGLU, gains of 1 + w and wide heads",
        paper="Gemma Team 2024, Gemma: Open Models Based on Gemini Research and Technology, arXiv:2403.08295",
        config=GemmaConfig,
        presets=PRESETS,
    )


@hookimpl
def build(config: GemmaConfig) -> nn.Module:
    return Gemma(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: GemmaConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = Gemma(config).state_dict()
    return published_weights(state_dict, expected, LLAMA_NAMES, model="GemmaForCausalLM", tied_head="lm_head.weight")


PUBLISHED_FIELDS = {**LLAMA_FIELDS, "n_kv_head": "num_key_value_heads", "d_head": "head_dim"}
"""A field here -> in transformers' GemmaConfig."""

ONLY = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
}
"""Fields there that have one value here."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> GemmaConfig:
    # The first files say "gelu", of which the published code takes the tanh form; later ones say so in a second field.
    only = {**ONLY, "hidden_act": "gelu"} if published.get("hidden_act") == "gelu" else ONLY
    fields = published_fields(published, PUBLISHED_FIELDS, model_type="gemma", only=only)
    return GemmaConfig(**fields, rope_theta=published_rope_theta(published))


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: GemmaConfig) -> dict[str, Tensor]:
    return exported_weights(state_dict, LLAMA_NAMES, rows=llama_rows(config))


@hookimpl
def export_config(config: GemmaConfig) -> dict[str, Any]:
    fields = {**PUBLISHED_FIELDS, **LLAMA_ATTENTION_FIELDS}
    return exported_fields(config, fields, model_type="gemma", architectures="GemmaForCausalLM", only=ONLY)
