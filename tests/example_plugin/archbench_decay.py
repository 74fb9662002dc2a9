"""decay: an architecture for archbench.

Mixer is the place to change: it is all that positions know of each other.
"""

import torch
from pydantic import Field
from torch import nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.errors import UsageError


class Config(ModelConfig):
    n_layer: int = Field(2, gt=0, description="L, blocks")
    n_head: int = Field(6, gt=0, description="H, heads")
    d_head: int = Field(32, gt=0, description="D, width of a head")

    @property
    def d_model(self):  # C, width of the hidden states
        return self.n_head * self.d_head


class Mixer(nn.Module):
    """x (B, T, C) -> (B, T, C): in each head an exponential moving average of the past, gated."""

    def __init__(self, config):
        super().__init__()
        C = config.d_model
        self.n_head = config.n_head
        self.log_rate = nn.Parameter(torch.linspace(-5, 0, config.n_head))  # (H,): remembers 150 positions to 1
        self.value, self.gate, self.out = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x, state=None):
        B, T, C = x.shape
        v = self.value(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        keep = torch.exp(-self.log_rate.float().exp()).view(-1, 1, 1)  # (H, 1, 1), each between 0 and 1
        t = torch.arange(T, device=x.device)
        weight = ((1 - keep) * keep ** (t[:, None] - t).clamp(min=0)).tril()  # (H, T, T)
        y = weight.to(v.dtype) @ v  # (B, H, T, D)
        if state is not None:  # (B, H, 1, D), the average of what was read before
            y = y + (keep ** (t[:, None] + 1)).to(v.dtype) * state
            state.copy_(y[:, :, -1:])
        return self.out(nn.functional.silu(self.gate(x)) * y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.d_model
        self.norm = nn.LayerNorm(C)
        self.mixer = Mixer(config)
        self.mlp = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x, state=None):
        x = x + self.mixer(self.norm(x), state)
        return x + self.mlp(x)


class Cache:
    """One average a block and head: as many bytes after a thousand tokens as after one."""

    def __init__(self, states):
        self.states = states  # (L, B, H, 1, D)
        self.length = 0  # positions read so far

    def tensors(self):
        return [self.states]


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

    def hidden(self, tokens, cache=None):
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        if end > self.config.context_length:
            raise UsageError("tokens", f"{end} are more than the context", f"Pass {self.config.context_length} at most")
        x = self.embedding(tokens) + self.positions(torch.arange(start, end, device=tokens.device))
        for layer, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.states[layer])
        return self.norm(x)

    def new_cache(self, batch_size, capacity):
        shape = (self.config.n_layer, batch_size, self.config.n_head, 1, self.config.d_head)
        return Cache(self.output.weight.new_zeros(shape))

    def extend(self, tokens, cache):
        hidden = self.hidden(tokens, cache)
        cache.length += tokens.shape[1]
        return self.head(hidden[:, -1])  # (B, V)


@hookimpl
def describe():
    presets = {
        "nano": Config(vocab_size=1024, context_length=128),
        "small": Config(vocab_size=8192, context_length=256, n_layer=6, d_head=64),
    }
    return ArchitectureInfo("decay", "One line on what it is", "unpublished", Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_with_cache(model, prompt, max_new_tokens, sampling)
