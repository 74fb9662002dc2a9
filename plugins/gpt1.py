"""GPT-1, the decoder-only transformer of Radford et al. 2018: the baseline that everything else is compared with.

Paper: Improving Language Understanding by Generative Pre-Training, section 4.1.
Published code: openai/finetune-transformer-lm, train.py. What differs from it: docs/gpt1.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, causal_attention, decode_with_cache, hookimpl, next_token_step
from archbench.errors import CheckpointError, ConfigError
from archbench.nn import Dropout, KVCache, Linear

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch


class GPT1Config(ModelConfig):
    """Sizes and rates of a GPT-1; the defaults are the published ones."""

    vocab_size: int = Field(40_478, gt=0, description="V, number of token ids")
    context_length: int = Field(512, gt=0, description="T, positions with a learned embedding: the most it reads at once")
    n_layer: int = Field(12, gt=0, description="L, blocks")
    n_head: int = Field(12, gt=0, description="H, attention heads of width D = d_model / n_head")
    d_model: int = Field(768, gt=0, description="C, width of the hidden states")
    d_ff: int = Field(3072, gt=0, description="F, width of the feed-forward layer")
    embd_dropout: float = Field(0.1, ge=0, lt=1, description="probability, on the sum of the two embeddings")
    resid_dropout: float = Field(0.1, ge=0, lt=1, description="probability, on what each sublayer adds")
    attn_dropout: float = Field(0.1, ge=0, lt=1, description="probability, on the attention weights")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.d_model % self.n_head:
            raise ConfigError("GPT1Config.n_head", f"{self.n_head} heads do not divide d_model = {self.d_model}", "Choose n_head among its divisors")
        return self


class Block(nn.Module):
    """Attention and feed-forward, each added to its input and normalised after the sum (post-LN)."""

    def __init__(self, config: GPT1Config, layer: int) -> None:
        super().__init__()
        C, F = config.d_model, config.d_ff
        self.layer, self.n_head, self.attn_dropout = layer, config.n_head, config.attn_dropout
        self.attn_in = Linear(C, 3 * C)  # queries, keys and values in one product
        self.attn_out = Linear(C, C)
        self.attn_norm = nn.LayerNorm(C, eps=1e-5)
        self.ff_in = Linear(C, F)
        self.ff_out = Linear(F, C)
        self.ff_norm = nn.LayerNorm(C, eps=1e-5)
        self.resid_dropout = Dropout(config.resid_dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = self.attn_norm(x + self.resid_dropout(self.attention(x, cache)))
        return self.ff_norm(x + self.resid_dropout(self.feed_forward(x)))

    def attention(self, x: Tensor, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.attn_in(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D), S positions read so far
        mixed = causal_attention(q, k, v, dropout=self.attn_dropout if self.training else 0.0)
        return self.attn_out(mixed.transpose(1, 2).reshape(B, T, C))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.ff_out(F.gelu(self.ff_in(x), approximate="tanh"))


class GPT1(nn.Module):
    """tokens (B, T) int64 -> logits (B, T, V). The output head is the token embedding; no norm precedes it."""

    def __init__(self, config: GPT1Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.embd_dropout = Dropout(config.embd_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        first = 0 if cache is None else cache.length
        positions = self.position_embedding.weight[first : first + tokens.shape[1]]  # (T, C)
        x = self.embd_dropout(self.token_embedding(tokens) + positions)
        for block in self.blocks:
            x = block(x, cache)
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """hidden states (..., C) -> logits (..., V)."""
        return F.linear(hidden, self.token_embedding.weight)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Keys and values of up to ``capacity`` positions; see :class:`archbench.protocols.CachedModel`."""
        ...

    def extend(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Read tokens (B, T) after those in the cache; logits (B, V) after the last one."""
        x = self.hidden(tokens, cache)
        cache.advance(tokens.shape[1])
        return self.head(x[:, -1])
