"""The smallest architecture: a table of next-token logits, one row a token."""

from torch import nn

from archbench import ArchitectureInfo, ModelConfig, decode_without_cache, hookimpl, next_token_step


class Bigram(nn.Embedding):  # tokens (B, T) int64 -> logits (B, T, V)
    def __init__(self, config):
        super().__init__(config.vocab_size, config.vocab_size)
        self.config = config


@hookimpl
def describe():
    presets = {"nano": ModelConfig(vocab_size=257, context_length=64)}
    return ArchitectureInfo("bigram", "A table of next-token logits", "Shannon 1948, section 3", ModelConfig, presets)


@hookimpl
def build(config):
    return Bigram(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_without_cache(model, prompt, max_new_tokens, sampling)
