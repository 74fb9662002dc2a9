"""nanoGPT's GPT; archbench_my_arch_model.py is its model.py, saved beside this file and left as it is.

It returns the logits of all positions only when it is given targets, so the wrapper calls its layers itself. It has no
cache.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from archbench import ArchitectureInfo, ModelConfig, decode_without_cache, hookimpl, next_token_step
from archbench.errors import UsageError


def _model():
    """The file beside this one; a plugin's file cannot simply import its neighbours."""
    file = Path(__file__).with_name("archbench_my_arch_model.py")
    if not file.is_file():
        raise UsageError(str(file), "nanoGPT's model.py is missing", "Get it: README.md has the command")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nanogpt = _model()


class Config(ModelConfig):
    n_layer: int = Field(2, gt=0, description="L, blocks")
    n_head: int = Field(4, gt=0, description="H, heads, a divisor of C")
    n_embd: int = Field(32, gt=0, description="C, width")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped in training")
    bias: bool = Field(True, description="whether linear layers and norms have a bias")


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        names = ("n_layer", "n_head", "n_embd", "dropout", "bias", "vocab_size")
        sizes = {name: getattr(config, name) for name in names}
        self.gpt = nanogpt.GPT(nanogpt.GPTConfig(block_size=config.context_length, **sizes))  # prints its size

    def forward(self, tokens, *, logits=True):  # (B, T) int64
        x = self.hidden(tokens)
        return self.head(x) if logits else x  # (B, T, V) or (B, T, C)

    def hidden(self, tokens):
        T, layers = tokens.shape[1], self.gpt.transformer
        if self.config.context_length < T:
            raise UsageError("tokens", f"{T} are more than the context", f"Pass {self.config.context_length} at most")
        x = layers.drop(layers.wte(tokens) + layers.wpe(torch.arange(T, device=tokens.device)))
        for block in layers.h:
            x = block(x)
        return layers.ln_f(x)

    def head(self, x):
        return self.gpt.lm_head(x)

    def head_parameters(self):
        return self.gpt.lm_head.weight, None


@hookimpl
def describe():
    presets = {"nano": Config(vocab_size=257, context_length=64)}
    return ArchitectureInfo("my-arch", "nanoGPT's model.py", "github.com/karpathy/nanoGPT", Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_without_cache(model, prompt, max_new_tokens, sampling)
