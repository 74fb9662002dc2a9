"""Two layers of attention that know no positions, a reference point of archbench probe.

Pre-norm blocks as in GPT-2, without its position embedding (NoPE: Kazemnejad et al. 2023, arXiv:2305.19466).
"""

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.nn import DecoderOnly, FeedForward, KVCache, SelfAttention


class Config(ModelConfig):
    n_layer: int = Field(2, gt=0, description="L, blocks")
    n_head: int = Field(4, gt=0, description="H, heads")
    d_model: int = Field(64, gt=0, description="C, width of the hidden states, a multiple of H")
    d_ff: int = Field(256, gt=0, description="F, width of the feed-forward layer")


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        C = config.d_model
        self.attention_norm, self.ff_norm = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attention = SelfAttention(C, config.n_head, layer=layer)
        self.ff = FeedForward(C, config.d_ff, F.gelu)

    def forward(self, x, cache):
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.ff(self.ff_norm(x))


class Model(DecoderOnly):
    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def hidden(self, tokens, cache=None):
        self.start(tokens, cache)
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x, cache)
        return self.norm(x)

    def new_cache(self, batch_size, capacity):
        self.check_context("capacity", capacity)
        c = self.config
        return KVCache(
            layers=c.n_layer, batch_size=batch_size, heads=c.n_head, capacity=capacity,
            head_width=c.d_model // c.n_head, like=self.embedding.weight,
        )  # fmt: skip


@hookimpl
def describe():
    presets = {"nano": Config(vocab_size=64, context_length=64)}
    paper = "Kazemnejad et al. 2023, arXiv:2305.19466"
    return ArchitectureInfo("no-positions", "Two layers of attention without positions", paper, Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_with_cache(model, prompt, max_new_tokens, sampling)
