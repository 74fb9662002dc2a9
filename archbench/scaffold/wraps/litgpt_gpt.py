"""litgpt's GPT (pip install litgpt), with its own cache.

litgpt keeps the cache on the model, one at a time. Here each cache holds its layers itself and lends them to the model
for one call, so that several sequences can be decoded in turns and nothing stays on the model.
"""

import torch
from litgpt.config import Config as LitConfig
from litgpt.model import GPT, build_mask_cache
from pydantic import Field
from torch import nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.errors import UsageError


class Config(ModelConfig):
    n_layer: int = Field(2, gt=0, description="L, blocks")
    n_head: int = Field(4, gt=0, description="H, query heads, a divisor of C")
    n_query_groups: int = Field(2, gt=0, description="G, key/value heads, a divisor of H")
    n_embd: int = Field(32, gt=0, description="C, width")
    intermediate_size: int = Field(96, gt=0, description="F, width of the feed-forward layer")


class Cache:
    def __init__(self, gpt, batch_size, capacity):
        weight = gpt.lm_head.weight
        place = {"device": weight.device, "dtype": weight.dtype}
        self.layers = [
            block.attn.build_kv_cache(batch_size, capacity, gpt.rope_cache_length(), **place)
            for block in gpt.transformer.h
        ]
        self.length = 0
        self.capacity = capacity

    def tensors(self):
        return [tensor for layer in self.layers for tensor in (layer.k, layer.v)]  # (B, G, S, D) each


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        names = ("n_layer", "n_head", "n_query_groups", "n_embd", "intermediate_size", "vocab_size")
        sizes = {name: getattr(config, name) for name in names}
        published = LitConfig(
            block_size=config.context_length, padded_vocab_size=config.vocab_size, rotary_percentage=1.0, bias=False,
            parallel_residual=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", **sizes,
        )  # fmt: skip
        self.gpt = GPT(published)
        self.gpt.apply(self.gpt._init_weights)

    def forward(self, tokens):  # (B, T) int64 -> (B, T, V)
        self._check_length(tokens.shape[1])
        return self.gpt(tokens)

    def new_cache(self, batch_size, capacity):
        self._check_length(capacity)
        return Cache(self.gpt, batch_size, capacity)

    def extend(self, tokens, cache):
        end = cache.length + tokens.shape[1]
        self._check_length(end)
        blocks = self.gpt.transformer.h
        try:
            for block, layer in zip(blocks, cache.layers, strict=True):
                block.attn.kv_cache = layer
            self.gpt.mask_cache = build_mask_cache(cache.capacity, tokens.device)
            positions = torch.arange(cache.length, end, device=tokens.device)
            logits = self.gpt(tokens, positions, end)  # (B, T, V)
        finally:
            self.gpt.clear_kv_cache()
        cache.length = end
        return logits[:, -1]

    def _check_length(self, positions):
        T = self.config.context_length
        if positions > T:
            raise UsageError("tokens", f"{positions} are more than the context", f"Pass {T} at most")


@hookimpl
def describe():
    presets = {"nano": Config(vocab_size=257, context_length=64)}
    return ArchitectureInfo("my-arch", "litgpt's GPT as a Llama", "github.com/Lightning-AI/litgpt", Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_with_cache(model, prompt, max_new_tokens, sampling)
