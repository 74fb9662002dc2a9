"""my-arch: an architecture for archbench.

Mixer is the place to change: it is all that positions know of each other.
"""

import torch
from pydantic import Field
from torch import nn

from archbench import ArchitectureInfo, ModelConfig, causal_attention, decode_without_cache, hookimpl, next_token_step
from archbench.errors import UsageError


class Config(ModelConfig):
    n_layer: int = Field(2, gt=0, description="L, blocks")
    n_head: int = Field(6, gt=0, description="H, heads")
    d_head: int = Field(32, gt=0, description="D, width of a head")

    @property
    def d_model(self):  # C, width of the hidden states
        return self.n_head * self.d_head


class Mixer(nn.Module):
    """x (B, T, C) -> (B, T, C), where position t knows positions 0 to t: causal attention."""

    def __init__(self, config):
        super().__init__()
        C = config.d_model
        self.n_head = config.n_head
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        y = causal_attention(q, k, v)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.d_model
        self.norm = nn.LayerNorm(C)
        self.mixer = Mixer(config)
        self.mlp = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x):
        x = x + self.mixer(self.norm(x))
        return x + self.mlp(x)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        C = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, C)
        self.positions = nn.Embedding(config.context_length, C)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(C)
        self.output = nn.Linear(C, config.vocab_size, bias=False)

    def forward(self, tokens, *, logits=True):  # (B, T) int64
        hidden = self.hidden(tokens)
        return self.head(hidden) if logits else hidden  # (B, T, V) or (B, T, C)

    def head(self, hidden):
        return self.output(hidden)

    def head_parameters(self):
        return self.output.weight, None  # no bias

    def hidden(self, tokens):
        end = tokens.shape[1]
        if end > self.config.context_length:
            raise UsageError("tokens", f"{end} are more than the context", f"Pass {self.config.context_length} at most")
        x = self.embedding(tokens) + self.positions(torch.arange(end, device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@hookimpl
def describe():
    presets = {
        "nano": Config(vocab_size=1024, context_length=128),
        "small": Config(vocab_size=8192, context_length=256, n_layer=6, d_head=64),
    }
    return ArchitectureInfo("my-arch", "One line on what it is", "unpublished", Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_without_cache(model, prompt, max_new_tokens, sampling)
