"""Linear attention whose state has a width of its own, a reference point of archbench probe.

Katharopoulos et al. 2020, "Transformers are RNNs", arXiv:2006.16236, section 3.2, with keys and queries of N features
behind a short convolution, as Arora et al. 2023 (Zoology, arXiv:2312.04927) put before mixers that compare tokens only.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.nn import CausalConv1d, DecoderOnly, FeedForward, StateCache


class Config(ModelConfig):
    n_layer: int = Field(2, gt=0, description="L, blocks")
    d_model: int = Field(64, gt=0, description="C, width of the hidden states")
    d_ff: int = Field(128, gt=0, description="F, width of the feed-forward layer")
    d_state: int = Field(16, gt=0, description="N, features of a key: the state is N × C")
    d_conv: int = Field(4, gt=0, description="taps of the short convolution")


class LinearAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, N = config.d_model, config.d_state
        self.convolution = CausalConv1d(C, config.d_conv)
        self.features = nn.Linear(C, 2 * N, bias=False)
        self.values = nn.Linear(C, C, bias=False)
        self.out = nn.Linear(C, C, bias=False)

    def new_state(self, batch_size):
        C, N = self.values.out_features, self.features.out_features // 2
        like = self.out.weight
        return self.convolution.new_state(batch_size), like.new_zeros(batch_size, N, C), like.new_zeros(batch_size, N)

    def forward(self, x, state):  # (B, T, C)
        x = F.silu(self.convolution(x, None if state is None else state[0]))
        q, k = (F.elu(self.features(x)) + 1).chunk(2, dim=-1)  # (B, T, N) both, positive
        v = self.values(x)
        weights = (q @ k.transpose(1, 2)).tril()  # (B, T, T)
        y, total = weights @ v, weights.sum(-1, keepdim=True)  # (B, T, C), (B, T, 1)
        if state is not None:
            _, sums, keys = state  # (B, N, C), (B, N): of the positions before
            y, total = y + q @ sums, total + q @ keys.unsqueeze(-1)
            sums += k.transpose(1, 2) @ v
            keys += k.sum(1)
        return self.out(y / (total + 1e-6))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mixer_norm, self.ff_norm = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.mixer = LinearAttention(config)
        self.ff = FeedForward(config.d_model, config.d_ff, F.gelu)

    def forward(self, x, state):
        x = x + self.mixer(self.mixer_norm(x), state)
        return x + self.ff(self.ff_norm(x))


class Model(DecoderOnly):
    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def hidden(self, tokens, cache=None):
        self.start(tokens, cache)
        x = self.embedding(tokens)  # (B, T, C)
        for number, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layers[number])
        return self.norm(x)

    def new_cache(self, batch_size, capacity):
        self.check_context("capacity", capacity)
        return StateCache([block.mixer.new_state(batch_size) for block in self.blocks])


@hookimpl
def describe():
    presets = {"nano": Config(vocab_size=65, context_length=64)}
    paper = "Katharopoulos et al. 2020, Transformers are RNNs, arXiv:2006.16236"
    return ArchitectureInfo("linear-attention", "Linear attention with a state of N × C", paper, Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_with_cache(model, prompt, max_new_tokens, sampling)
