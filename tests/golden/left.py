"""A small transformer. Never change it: keys and digests in the golden files are of its bytes."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from archbench import ArchitectureInfo, ModelConfig, causal_attention, decode_with_cache, hookimpl, next_token_step
from archbench.errors import UsageError
from archbench.nn import KVCache


class Config(ModelConfig):
    n_layer: int = Field(2, gt=0, description="L, blocks")
    n_head: int = Field(4, gt=0, description="H, query heads")
    n_group: int = Field(2, gt=0, description="G, key/value heads, a divisor of H")
    d_head: int = Field(8, gt=0, multiple_of=2, description="D, width of a head")
    d_ff: int = Field(48, gt=0, description="F, width of the feed-forward layer")
    window: int = Field(9, gt=0, description="W, positions that each sees, itself included")

    @property
    def d_model(self):  # C, width of the hidden states
        return self.n_head * self.d_head


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):  # (..., C)
        scale = x.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return (x * scale).to(x.dtype) * self.gain


class Rotary(nn.Module):
    """Su et al. 2021, arXiv:2104.09864, section 3.4."""

    def __init__(self, d_head, context_length):
        super().__init__()
        frequencies = 10_000 ** (-torch.arange(0, d_head, 2) / d_head)  # (D/2,)
        angles = torch.arange(context_length)[:, None] * frequencies  # (T, D/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x, start):  # (B, H, T, D), at positions start, start + 1, …
        end = start + x.shape[2]
        cos, sin = self.cos[start:end].to(x.dtype), self.sin[start:end].to(x.dtype)  # (T, D/2)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        C, H, G, D = config.d_model, config.n_head, config.n_group, config.d_head
        self.layer, self.window, self.heads = layer, config.window, (H, G, G)
        self.qkv = nn.Linear(C, (H + 2 * G) * D, bias=False)
        self.out = nn.Linear(H * D, C, bias=False)
        self.rotary = Rotary(D, config.context_length)

    def forward(self, x, cache):
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, sum(self.heads), -1).transpose(1, 2).split(self.heads, dim=1)  # (B, ·, T, D)
        start = 0 if cache is None else cache.length
        q, k = self.rotary(q, start), self.rotary(k, start)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, G, S, D)
        y = causal_attention(q, k, v, window=self.window)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    """SwiGLU: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model)
        self.attention = Attention(config, layer)
        self.ff_norm = RMSNorm(config.d_model)
        self.ff = FeedForward(config)

    def forward(self, x, cache):
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.ff(self.ff_norm(x))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size)
        for weight in (self.embedding.weight, self.output.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, tokens, *, logits=True):  # (B, T) int64
        x = self.hidden(tokens)
        return self.head(x) if logits else x  # (B, T, V) or (B, T, C)

    def hidden(self, tokens, cache=None):
        end = tokens.shape[1] + (0 if cache is None else cache.length)
        if end > self.config.context_length:
            raise UsageError("tokens", f"{end} are more than the context", f"Pass {self.config.context_length} at most")
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x, cache)
        return self.norm(x)

    def head(self, x):
        return self.output(x)

    def head_parameters(self):
        return self.output.weight, self.output.bias

    def new_cache(self, batch_size, capacity):
        c = self.config
        if capacity > c.context_length:
            raise UsageError("capacity", f"{capacity} are more than the context", f"Ask for {c.context_length} at most")
        return KVCache(
            layers=c.n_layer, batch_size=batch_size, heads=c.n_group, capacity=capacity, head_width=c.d_head,
            like=self.blocks[0].attention.qkv.weight,
        )  # fmt: skip

    def extend(self, tokens, cache):
        x = self.hidden(tokens, cache)
        cache.advance(tokens.shape[1])
        return self.head(x[:, -1])

    def forward_flops(self, batch_size, context_length):
        c, B, T = self.config, batch_size, context_length
        C, H, G, D, F, V = c.d_model, c.n_head, c.n_group, c.d_head, c.d_ff, c.vocab_size
        block = C * (H + 2 * G) * D + H * D * C + 3 * C * F + 2 * T * H * D  # weights, then scores and their mixtures
        return 2 * B * T * (c.n_layer * block + C * V)


@hookimpl
def describe():
    presets = {"nano": Config(vocab_size=257, context_length=24)}
    summary = "Rotary positions, grouped heads, a window, a gated feed-forward"
    return ArchitectureInfo("golden-left", summary, "none", Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_with_cache(model, prompt, max_new_tokens, sampling)
