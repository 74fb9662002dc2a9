"""One LSTM layer, a reference point of archbench probe: it tracks states that attention does not.

Hochreiter & Schmidhuber 1997, "Long Short-Term Memory", with the forget gate of Gers et al. 2000, as in ``nn.LSTM``.
"""

from pydantic import Field
from torch import nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.nn import DecoderOnly, StateCache


class Config(ModelConfig):
    d_model: int = Field(96, gt=0, description="C, width of embedding and state")


class Model(DecoderOnly):
    def __init__(self, config):
        super().__init__(config)
        C = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, C)
        self.lstm = nn.LSTM(C, C, batch_first=True)
        self.output = nn.Linear(C, config.vocab_size, bias=False)

    def hidden(self, tokens, cache=None):
        self.start(tokens, cache)
        x = self.embedding(tokens)  # (B, T, C)
        if cache is None:
            return self.lstm(x)[0]
        states = cache.layers[0]  # h and c, (1, B, C) both
        x, after = self.lstm(x, states)
        for old, new in zip(states, after, strict=True):
            old.copy_(new.detach())
        return x

    def new_cache(self, batch_size, capacity):
        self.check_context("capacity", capacity)
        like = self.output.weight
        return StateCache([tuple(like.new_zeros(1, batch_size, self.config.d_model) for _ in range(2))])


@hookimpl
def describe():
    presets = {"nano": Config(vocab_size=64, context_length=64)}
    paper = "Hochreiter & Schmidhuber 1997, Long Short-Term Memory"
    return ArchitectureInfo("lstm", "One LSTM layer", paper, Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_with_cache(model, prompt, max_new_tokens, sampling)
